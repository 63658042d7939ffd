"""The colours of arms, in the report and in the plots of an evaluation."""

# Okabe and Ito's colours, which colour-blind readers can distinguish, the light ones darker: a line has a contrast of 3 to
# the page in both themes. An arm has the same colour in all pictures.
COLOURS = ["#555555", "#D55E00", "#0072B2", "#008F68", "#C46B9D", "#A87400", "#2F8FC8", "#000000"]
