"""Shows, piece by piece and to stated tolerances, that jaxseg does what the PyTorch reference does.

Rooms, from the top; each imports only from those below it:

- `__main__`, `mutations`, `race`: the commands
- `mistakes`: mistakes to inject
- `checks`: one file for each question
- `report`: tables, report.html, race.json
- `twins`: a network, layer, schedule or training run on both sides
- `reference`: the article in PyTorch
- `judge`: what decides pass or fail
"""
