"""Tables of runs and evaluations to one page; reads no scan and needs no GPU."""
