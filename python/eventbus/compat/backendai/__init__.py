"""Backend.AI's names: era A here, era B in ``events``; nothing but names and quirks."""

from eventbus.compat.backendai.dispatcher import EventCallback, EventDispatcher, EventHandler

__all__ = ["EventCallback", "EventDispatcher", "EventHandler"]
