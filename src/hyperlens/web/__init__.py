"""What every page and interface of ours on the network shares: who may call it, how much, and where it listens."""

from hyperlens.web.answers import spell_event, spell_json
from hyperlens.web.guard import LARGEST_BODY, guard
from hyperlens.web.listening import (
    check_address,
    is_loopback,
    name_hosts,
    new_token,
    open_socket,
    read_token,
    serve_app,
    spell_address,
)

__all__ = [
    "LARGEST_BODY",
    "check_address",
    "guard",
    "is_loopback",
    "name_hosts",
    "new_token",
    "open_socket",
    "read_token",
    "serve_app",
    "spell_address",
    "spell_event",
    "spell_json",
]
