"""Scenes and maps with coordinates. Needs the extra `geo`: call `jaxseg.base.extra.require` before importing."""
