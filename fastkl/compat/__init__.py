"""Drop-in namespaces: each module here has the functions of another library, under their names and with their calls.

Change the line that imports them, and a pipeline keeps its answers, but where the original's are wrong, and gets them
sooner. What an original is called with that no kernel here is for goes to the original itself. README.md beside this
file says how each differs.

Nothing here is imported by ``import fastkl``, and the library that a module stands in for only by that module.
"""
