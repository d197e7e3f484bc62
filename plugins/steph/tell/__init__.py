"""Saying it: advice, report, comparison. Takes a record, gives text; decides nothing."""
