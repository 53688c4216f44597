"""Which addresses the server may connect to on a caller's behalf.

``ipaddress.is_global`` is not enough: Python 3.11's is true for NAT64, 6to4, fec0::/10, ::127.0.0.1, 192.0.0.8 and
multicast. So an address must be global *and* outside every network below. Standard library only: the yt-dlp child imports
this file too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DENIED = (
    "0.0.0.0/8",  # this host, this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # carrier-grade NAT; cloud metadata lives here too (Alibaba 100.100.100.200)
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link local; cloud metadata
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocol assignments; metadata at 192.0.0.192 (Oracle)
    "192.0.2.0/24",  # documentation
    "192.31.196.0/24",  # AS112
    "192.52.193.0/24",  # AMT
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",  # private
    "192.175.48.0/24",  # AS112
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
    "::/96",  # unspecified, loopback, IPv4-compatible
    "::ffff:0:0/96",  # IPv4-mapped (also unwrapped below)
    "::ffff:0:0:0/96",  # IPv4-translated
    "64:ff9b::/96",  # NAT64
    "64:ff9b:1::/48",  # local NAT64
    "100::/64",  # discard
    "100:0:0:1::/64",  # dummy prefix
    "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID ...
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4
    "2620:4f:8000::/48",  # AS112
    "3fff::/20",  # documentation
    "5f00::/16",  # segment routing
    "fc00::/7",  # unique local; metadata at fd00:ec2::254 (AWS)
    "fe80::/10",  # link local
    "fec0::/10",  # site local
    "ff00::/8",  # multicast
)
DENIED: tuple[Network, ...] = tuple(ipaddress.ip_network(network) for network in _DENIED)


def is_public(address: str | Address, allow: Iterable[Network] = ()) -> bool:
    """Whether ``address`` (no zone) may be connected to. ``allow`` names networks that pass all the same.

    An IPv4 address inside an IPv6 one does not help: those forms are refused as a whole.
    """
    try:
        ip = ipaddress.ip_address(address) if isinstance(address, str) else address
    except ValueError:
        return False
    if any(ip.version == network.version and ip in network for network in allow):
        return True
    if getattr(ip, "scope_id", None):
        return False
    return ip.is_global and not any(ip.version == network.version and ip in network for network in DENIED)
