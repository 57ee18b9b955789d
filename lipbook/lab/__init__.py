"""What experiments need: data, images, networks, trainings, transport and fidelity.

Needs the extra ``lab``: ``pip install lipbook[lab]``. The core never imports it.
"""
