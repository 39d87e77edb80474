"""Time and memory of this backbone against other implementations of XCiT and other backbones (tools/benchmark.py).

``settings`` says what is measured, ``contenders`` builds the models, ``timing`` and ``memory`` measure them,
``scaling`` follows them to large images, ``report`` and ``plots`` write what was found.
"""
