"""Shows, piece by piece and to stated tolerances, that jaxseg does what the PyTorch reference does.

Rooms, from the top; each imports only from those below it:

- `__main__`, `mutations`, `race`, `certify`: the commands
- `mistakes`: mistakes to inject
- `checks`: one file for each question
- `certificate`: a model of yours and its twin, compared by `parity.certify`
- `report`: tables, report.html, race.json
- `twins`: a network, layer, schedule or training run on both sides
- `reference`: the article in PyTorch
- `judge`: what decides pass or fail
"""

import sys
import types


class _Parity(types.ModuleType):
    """The package, whose `certify` is the function also after the command `parity.certify` was imported."""

    @property
    def certify(self):
        from parity.certificate.certificate import certify

        return certify

    @certify.setter
    def certify(self, command):
        """Takes no notice: importing the command would put it here."""


sys.modules[__name__].__class__ = _Parity
