"""What a record says, in words: report, advice, comparison. Takes values, gives text; decides nothing."""
