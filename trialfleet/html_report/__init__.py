"""A study's report as one HTML file that needs nothing else: `render`."""

from trialfleet.html_report.page import render as render
