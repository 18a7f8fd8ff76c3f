"""What coordinator and workers share: the words of the design as data, and nothing that touches the outside world."""
