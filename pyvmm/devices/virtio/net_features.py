"""The numbers of a virtio network device: feature bits (as masks), its header, its configuration space, its commands.

virtio 1.2, section 5.1.
"""

from __future__ import annotations

# -- features (section 5.1.3) ---------------------------------------------------------------------------
# HOST_*: what the driver may leave to the device; GUEST_*: what the driver takes undone.

CSUM = 1 << 0
GUEST_CSUM = 1 << 1
MTU = 1 << 3
MAC = 1 << 5
GUEST_TSO4 = 1 << 7
GUEST_TSO6 = 1 << 8
GUEST_ECN = 1 << 9
GUEST_UFO = 1 << 10
HOST_TSO4 = 1 << 11
HOST_TSO6 = 1 << 12
HOST_ECN = 1 << 13
HOST_UFO = 1 << 14
MRG_RXBUF = 1 << 15  # a frame may take several buffers
STATUS = 1 << 16  # the configuration space says whether the link is up
CTRL_VQ = 1 << 17
CTRL_RX = 1 << 18
CTRL_MAC_ADDR = 1 << 23
GUEST_USO4 = 1 << 54
GUEST_USO6 = 1 << 55
HOST_USO = 1 << 56

#: With one of these a frame may be as large as a segmented packet ever is.
GUEST_SEGMENTATION = GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | GUEST_USO4 | GUEST_USO6

# -- queues (section 5.1.2) -----------------------------------------------------------------------------

RECEIVE, TRANSMIT, CONTROL = 0, 1, 2

# -- the header of a frame, struct virtio_net_hdr (section 5.1.6) ---------------------------------------

#: flags, gso_type (u8), hdr_len, gso_size, csum_start, csum_offset, num_buffers (u16).
HEADER_SIZE = 12
NUM_BUFFERS = 10
#: An Ethernet header, with an 802.1Q tag.
ETHERNET_HEADER = 18
#: The largest frame with its header: 64 KiB of IP packet, which is what segmentation offload can hold.
LARGEST_FRAME = HEADER_SIZE + ETHERNET_HEADER + 65535

# -- configuration space (section 5.1.4): mac, status (u16), max_virtqueue_pairs (u16), mtu (u16) ---------

CONFIG = "<6sHHH"
STATUS_OFFSET = 6
LINK_UP = 1

# -- commands (section 5.1.6.5): class and command, then data; the device answers with one byte -----------

OK, ERR = 0, 1
CLASS_RX = 0
RX_COMMANDS = (0, 1)  # promiscuous, all multicast: on or off
CLASS_MAC = 1
MAC_TABLE_SET, MAC_ADDR_SET = 0, 1
