"""The output of a run: tables on the terminal, report.html and report.json, race.json and race.png."""
