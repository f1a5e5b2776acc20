// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

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
	err := eachAttribute(data, func(kind uint16, value []byte) error {
		switch {
		case kind == unix.WGDEVICE_A_PUBLIC_KEY && len(value) == len(dev.PublicKey):
			copy(dev.PublicKey[:], value)
		case kind == unix.WGDEVICE_A_LISTEN_PORT && len(value) == 2:
			dev.ListenPort = int(binary.NativeEndian.Uint16(value))
		case kind == unix.WGDEVICE_A_FWMARK && len(value) == 4:
			dev.Mark = binary.NativeEndian.Uint32(value)
		case kind == unix.WGDEVICE_A_PEERS:
			return eachAttribute(value, func(_ uint16, value []byte) error {
				p, err := decodePeer(value)
				// The allowed IPs of one peer may take several messages.
				if n := len(peers); n > 0 && peers[n-1].Key == p.Key {
					peers[n-1].AllowedIPs = append(peers[n-1].AllowedIPs, p.AllowedIPs...)
				} else {
					peers = append(peers, p)
				}
				return err
			})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return peers, nil
}

func decodePeer(data []byte) (p netcfg.Peer, err error) {
	err = eachAttribute(data, func(kind uint16, value []byte) error {
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
			return eachAttribute(value, func(_ uint16, value []byte) error {
				ip, err := decodeAllowedIP(value)
				p.AllowedIPs = append(p.AllowedIPs, ip)
				return err
			})
		}
		return nil
	})
	return p, err
}

func decodeAllowedIP(data []byte) (netip.Prefix, error) {
	var addr netip.Addr
	bits := -1
	err := eachAttribute(data, func(kind uint16, value []byte) error {
		switch {
		case kind == unix.WGALLOWEDIP_A_IPADDR:
			addr, _ = netip.AddrFromSlice(value)
		case kind == unix.WGALLOWEDIP_A_CIDR_MASK && len(value) == 1:
			bits = int(value[0])
		}
		return nil
	})
	p := netip.PrefixFrom(addr, bits)
	if err == nil && !p.IsValid() {
		err = errMalformed
	}
	return p, err
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

// eachAttribute calls f with type and value of each netlink attribute (struct nlattr), until one is
// malformed or f returns an error.
func eachAttribute(data []byte, f func(kind uint16, value []byte) error) error {
	for len(data) > 0 {
		if len(data) < unix.SizeofNlAttr {
			return errMalformed
		}
		length, kind := int(binary.NativeEndian.Uint16(data)), binary.NativeEndian.Uint16(data[2:])
		if length < unix.SizeofNlAttr || length > len(data) {
			return errMalformed
		}
		if err := f(kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), data[unix.SizeofNlAttr:length]); err != nil {
			return err
		}
		data = data[min(len(data), (length+3)&^3):]
	}
	return nil
}

// sortPeers sorts peers, and the allowed IPs of each.
func sortPeers(peers []netcfg.Peer) []netcfg.Peer {
	for i := range peers {
		slices.SortFunc(peers[i].AllowedIPs, netip.Prefix.Compare)
	}
	slices.SortFunc(peers, func(a, b netcfg.Peer) int { return slices.Compare(a.Key[:], b.Key[:]) })
	return peers
}

// peersAtOnce is how many peers wgctrl writes with one request. Of more, it writes each with a
// request of its own (peerBatchChunk in its source).
const peersAtOnce = 32

// changePeers changes all peers, in their order.
func (k *Kernel) changePeers(p netcfg.Plan) error {
	if len(p.Peers) == 0 {
		return nil
	}
	c, err := openControl()
	if err != nil {
		return err
	}
	defer c.Close()
	var errs []error
	for some := range slices.Chunk(p.Peers, peersAtOnce) {
		errs = append(errs, k.changeSome(c, some))
	}
	return errors.Join(errs...)
}

// changeSome changes peers at once. If the kernel refuses that, it changes them one by one,
// so that an error in one peer doesn't keep the others from their tunnels.
func (k *Kernel) changeSome(c *wgctrl.Client, peers []netcfg.PeerChange) error {
	all := k.configureBy(c, configOf(peers...))
	if all == nil || len(peers) == 1 || gone(all) {
		return refusedStep(all)
	}
	var errs []error
	for _, pc := range peers {
		if err := k.configureBy(c, configOf(pc)); err != nil {
			errs = append(errs, refusedStep(fmt.Errorf("change peer %s %s: %w", pc.Name, pc.Key, err)))
		}
	}
	return errors.Join(errs...)
}

// configOf converts changes of peers to the form that wgctrl expects. It never replaces
// the list of peers or a peer's allowed IPs, because both drop packets of peers that the
// change is not about.
func configOf(peers ...netcfg.PeerChange) wgtypes.Config {
	var c wgtypes.Config
	for _, pc := range peers {
		c.Peers = append(c.Peers, peerConfig(pc))
	}
	return c
}

func peerConfig(pc netcfg.PeerChange) wgtypes.PeerConfig {
	c := wgtypes.PeerConfig{
		PublicKey: pc.Key,
		Remove:    pc.Remove,
		// If someone removed the peer after we observed it, a change must not create it
		// again with half of its settings. The next plan adds it completely.
		UpdateOnly:                  !pc.Add,
		PersistentKeepaliveInterval: pc.Keepalive,
		PresharedKey:                (*wgtypes.Key)(pc.PresharedKey),
	}
	if pc.Endpoint.IsValid() {
		c.Endpoint = net.UDPAddrFromAddrPort(pc.Endpoint)
	}
	for _, ip := range pc.AllowedIPs {
		c.AllowedIPs = append(c.AllowedIPs, *ipNetOf(ip))
	}
	return c
}
