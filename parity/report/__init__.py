"""What a run shows and writes: tables on the terminal, report.html and report.json, race.json and race.png."""
