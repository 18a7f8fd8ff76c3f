"""The commands as click knows them: what each is called, takes and says of itself; a module for each theme.

What a command does is in the modules beside this package. Those are imported when it runs, and no sooner: `--help`, which
imports everything here, is to be quick.
"""
