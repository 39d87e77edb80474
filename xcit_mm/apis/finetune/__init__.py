"""From a folder of images to a trained model: read any usual format, choose a recipe, train, report.

:mod:`formats` detects the format of a folder, the readers make one :class:`~.data.Data` of it, :mod:`split` divides it,
:mod:`show` says what was found, :mod:`write` writes it as the libraries read it, :mod:`recipe` and :mod:`config` write
an ordinary config, and :mod:`report` summarises the result. :mod:`command` is the command line.
"""
