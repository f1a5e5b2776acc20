// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
)

// wgctrl reads a device with thousands of peers in seven times the time that the kernel takes to
// tell of them, and a daemon does so in each turn. So here is another reader, of the same messages
// (include/uapi/linux/wireguard.h), for devices of the kernel. All that is written goes through wgctrl.

// errMalformed means that an answer of the kernel is not as its documentation says.
var errMalformed = errors.New("the kernel's answer is malformed")

// readKernelDevice reads key, port and mark of a device into dev, and returns its peers.
func readKernelDevice(dev *netcfg.Device) ([]netcfg.Peer, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	defer c.Close()
	family, err := c.GetFamily(unix.WG_GENL_NAME)
	if err != nil {
		return nil, fmt.Errorf("find WireGuard in the kernel: %w", err)
	}
	name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.WGDEVICE_A_IFNAME, Data: append([]byte(dev.Name), 0)}})
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", dev.Name, err)
	}
	answers, err := c.Execute(
		genetlink.Message{Header: genetlink.Header{Command: unix.WG_CMD_GET_DEVICE, Version: unix.WG_GENL_VERSION}, Data: name},
		family.ID, netlink.Request|netlink.Dump)
	var peers []netcfg.Peer
	for _, a := range answers {
		if err == nil {
			peers, err = decodeDevice(a.Data, dev, peers)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", dev.Name, err)
	}
	return peers, nil
}

// decodeDevice decodes one of the messages that describe a device, and appends the peers in it.
func decodeDevice(data []byte, dev *netcfg.Device, peers []netcfg.Peer) ([]netcfg.Peer, error) {
	rest := attributes{data}
	for kind, value := range rest.all() {
		switch {
		case kind == unix.WGDEVICE_A_PUBLIC_KEY && len(value) == len(dev.PublicKey):
			copy(dev.PublicKey[:], value)
		case kind == unix.WGDEVICE_A_LISTEN_PORT && len(value) == 2:
			dev.ListenPort = int(binary.NativeEndian.Uint16(value))
		case kind == unix.WGDEVICE_A_FWMARK && len(value) == 4:
			dev.Mark = binary.NativeEndian.Uint32(value)
		case kind == unix.WGDEVICE_A_PEERS:
			list := attributes{value}
			for _, value := range list.all() {
				p, err := decodePeer(value)
				if err != nil {
					return nil, err
				}
				// The allowed IPs of one peer may take several messages.
				if n := len(peers); n > 0 && peers[n-1].Key == p.Key {
					peers[n-1].AllowedIPs = append(peers[n-1].AllowedIPs, p.AllowedIPs...)
					continue
				}
				peers = append(peers, p)
			}
			if len(list.data) > 0 {
				return nil, errMalformed
			}
		}
	}
	if len(rest.data) > 0 {
		return nil, errMalformed
	}
	return peers, nil
}

func decodePeer(data []byte) (p netcfg.Peer, err error) {
	rest := attributes{data}
	for kind, value := range rest.all() {
		switch {
		case kind == unix.WGPEER_A_PUBLIC_KEY && len(value) == len(p.Key):
			copy(p.Key[:], value)
		case kind == unix.WGPEER_A_PRESHARED_KEY && len(value) == len(p.PresharedKey):
			copy(p.PresharedKey[:], value)
		case kind == unix.WGPEER_A_ENDPOINT:
			p.Endpoint = decodeSockaddr(value)
		case kind == unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL && len(value) == 2:
			p.Keepalive = time.Duration(binary.NativeEndian.Uint16(value)) * time.Second
		case kind == unix.WGPEER_A_LAST_HANDSHAKE_TIME && len(value) == 16: // struct __kernel_timespec
			seconds, nanoseconds := binary.NativeEndian.Uint64(value), binary.NativeEndian.Uint64(value[8:])
			if seconds != 0 || nanoseconds != 0 {
				p.LastHandshake = time.Unix(int64(seconds), int64(nanoseconds))
			}
		case kind == unix.WGPEER_A_RX_BYTES && len(value) == 8:
			p.Received = int64(binary.NativeEndian.Uint64(value))
		case kind == unix.WGPEER_A_TX_BYTES && len(value) == 8:
			p.Sent = int64(binary.NativeEndian.Uint64(value))
		case kind == unix.WGPEER_A_ALLOWEDIPS:
			if p.AllowedIPs, err = decodeAllowedIPs(value); err != nil {
				return p, err
			}
		}
	}
	if len(rest.data) > 0 {
		return p, errMalformed
	}
	return p, nil
}

func decodeAllowedIPs(data []byte) ([]netip.Prefix, error) {
	var out []netip.Prefix
	rest := attributes{data}
	for _, value := range rest.all() {
		var addr netip.Addr
		bits := -1
		one := attributes{value}
		for kind, value := range one.all() {
			switch {
			case kind == unix.WGALLOWEDIP_A_IPADDR:
				addr, _ = netip.AddrFromSlice(value)
			case kind == unix.WGALLOWEDIP_A_CIDR_MASK && len(value) == 1:
				bits = int(value[0])
			}
		}
		p := netip.PrefixFrom(addr, bits)
		if !p.IsValid() || len(one.data) > 0 {
			return nil, errMalformed
		}
		out = append(out, p)
	}
	if len(rest.data) > 0 {
		return nil, errMalformed
	}
	return out, nil
}

// decodeSockaddr decodes a struct sockaddr_in or sockaddr_in6. It returns the zero AddrPort for any
// other one.
func decodeSockaddr(data []byte) netip.AddrPort {
	if len(data) < 2 {
		return netip.AddrPort{}
	}
	switch family := binary.NativeEndian.Uint16(data); {
	case family == unix.AF_INET && len(data) >= 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:8])), binary.BigEndian.Uint16(data[2:]))
	case family == unix.AF_INET6 && len(data) >= 24:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:24])).Unmap(), binary.BigEndian.Uint16(data[2:]))
	}
	return netip.AddrPort{}
}

// attributes are netlink attributes (struct nlattr) that have not been read yet.
type attributes struct{ data []byte }

// all returns types and values. If an attribute is malformed, it ends, and data is left.
func (a *attributes) all() iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(a.data) >= unix.SizeofNlAttr {
			length, kind := int(binary.NativeEndian.Uint16(a.data)), binary.NativeEndian.Uint16(a.data[2:])
			if length < unix.SizeofNlAttr || length > len(a.data) {
				return
			}
			value := a.data[unix.SizeofNlAttr:length]
			a.data = a.data[min(len(a.data), (length+3)&^3):]
			if !yield(kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), value) {
				return
			}
		}
	}
}

// sorted sorts peers, and the allowed IPs of each.
func sorted(peers []netcfg.Peer) []netcfg.Peer {
	for i := range peers {
		slices.SortFunc(peers[i].AllowedIPs, netip.Prefix.Compare)
	}
	slices.SortFunc(peers, func(a, b netcfg.Peer) int { return slices.Compare(a.Key[:], b.Key[:]) })
	return peers
}
