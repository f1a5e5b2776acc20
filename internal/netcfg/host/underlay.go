// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// ErrNoPort means that WireGuard has no UDP port at the moment, or that nobody serves it.
var ErrNoPort = errors.New("WireGuard's UDP port is not open")

// Underlay is the outer side of the WireGuard device: its UDP port, through which probes go
// beside WireGuard's packets, and the endpoints of its peers. It follows the device: when
// Observe finds that it listens on another port, or that it was made anew, the sockets are
// opened again.
//
// Methods may be called from several goroutines, and don't wait for Observe and Apply.
type Underlay struct {
	name string
	own  []string // names of meshd's links
	nl   *netlink.Handle

	received chan rawudp.Datagram // from WireGuard's sockets in this process

	mu       sync.Mutex
	listener listener
	raw      *rawudp.Conn  // beside WireGuard's sockets; nil if not open
	changed  chan struct{} // closed when the listener is another, or at Close
	closed   bool
	links    map[int]bool // whether the link with an index is meshd's

	controlMu sync.Mutex
	control   *wgctrl.Client // nil if not open
}

// listener is who has WireGuard's UDP port.
type listener struct {
	port uint16     // 0 for none
	tun  *userspace // nil for the kernel, or another process
}

// receiveQueue is how many probes may wait to be served. More are dropped, as in a socket.
const receiveQueue = 256

func newUnderlay(o Options, nl *netlink.Handle) *Underlay {
	return &Underlay{
		name: o.Interface, own: []string{o.Interface, netcfg.VXLANName(o.Interface), o.Bridge}, nl: nl,
		received: make(chan rawudp.Datagram, receiveQueue),
		changed:  make(chan struct{}),
		links:    make(map[int]bool),
	}
}

// Underlay returns the outer side of the WireGuard device. Kernel closes it.
func (k *Kernel) Underlay() *Underlay { return k.underlay }

// listener returns who has the UDP port of the device, which may be nil.
func (k *Kernel) listener(d *netcfg.Device) listener {
	if d == nil {
		return listener{}
	}
	l := listener{port: uint16(d.ListenPort)}
	if d.Implementation == netcfg.Userspace && k.tun != nil && k.tun.alive() {
		l.tun = k.tun
	}
	return l
}

// follow is told who has WireGuard's UDP port.
func (u *Underlay) follow(l listener) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || l == u.listener {
		return
	}
	u.listener = l
	_ = u.closeRaw() // Serve opens the next
	clear(u.links)
	close(u.changed)
	u.changed = make(chan struct{})
}

func (u *Underlay) closeRaw() error {
	if u.raw == nil {
		return nil
	}
	raw := u.raw
	u.raw = nil
	return raw.Close()
}

// Close closes the sockets: Serve returns.
func (u *Underlay) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil
	}
	u.closed = true
	close(u.changed)
	u.closeControl()
	if err := u.closeRaw(); err != nil {
		return fmt.Errorf("close WireGuard's UDP port: %w", err)
	}
	return nil
}

// Send sends a datagram from WireGuard's UDP port. Beside the kernel's WireGuard this works
// only during Serve. The error matches ErrNoPort if there is none.
func (u *Underlay) Send(p rawudp.Packet) error {
	u.mu.Lock()
	raw, tun := u.raw, u.listener.tun
	u.mu.Unlock()
	switch {
	case tun != nil:
		return tun.bind.sendProbe(p)
	case raw != nil:
		return raw.Send(p)
	}
	return fmt.Errorf("send to %s: %w", p.To, ErrNoPort)
}

// Serve calls got with each probe that arrives at WireGuard's UDP port, until Close; got must
// not keep the payload, and may be called by two goroutines. Probes that arrive by a link of
// meshd's are dropped: they have come through a tunnel, or from a pod, and would prove a path
// that leads through the mesh itself.
//
// After an error, with which a socket could not be opened or read, Serve may be called again.
func (u *Underlay) Serve(got func(rawudp.Datagram)) error {
	outside := func(d rawudp.Datagram) {
		if own, err := u.ownLink(d.Link); err == nil && !own {
			got(d)
		}
	}
	for {
		raw, changed, err := u.listen()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err == nil && raw != nil {
			err = raw.Serve(outside)
		}
		if err != nil {
			return fmt.Errorf("serve WireGuard's UDP port: %w", err)
		}
		u.drain(changed, outside)
	}
}

// drain passes on what WireGuard's sockets in this process receive, until changed is closed.
func (u *Underlay) drain(changed <-chan struct{}, got func(rawudp.Datagram)) {
	for {
		select {
		case d := <-u.received:
			got(d)
		case <-changed:
			return
		}
	}
}

// listen returns the sockets beside WireGuard's, or nil if none are needed, and a channel that
// is closed when they are to be replaced. The error is net.ErrClosed after Close.
func (u *Underlay) listen() (*rawudp.Conn, <-chan struct{}, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, nil, net.ErrClosed
	}
	_ = u.closeRaw() // after an error
	if u.listener.port == 0 || u.listener.tun != nil {
		return nil, u.changed, nil
	}
	raw, err := rawudp.Open(rawudp.Options{Port: u.listener.port, Magic: path.Beginnings()})
	u.raw = raw
	return raw, u.changed, err
}

// Traffic returns what WireGuard shows of each peer.
func (u *Underlay) Traffic() (map[wgtypes.Key]path.Traffic, error) {
	traffic, err := u.traffic()
	if err != nil {
		return nil, fmt.Errorf("read traffic of %s: %w", u.name, err)
	}
	return traffic, nil
}

func (u *Underlay) traffic() (map[wgtypes.Key]path.Traffic, error) {
	if tun := u.userspace(); tun != nil {
		return tun.traffic()
	}
	out := make(map[wgtypes.Key]path.Traffic)
	err := u.withControl(func(c *wgctrl.Client) error {
		d, err := c.Device(u.name)
		if err != nil {
			return err
		}
		for _, p := range d.Peers {
			peer := toPeer(p)
			out[peer.Key] = path.Traffic{Sent: uint64(peer.Sent), Received: uint64(peer.Received), Endpoint: peer.Endpoint}
		}
		return nil
	})
	return out, err
}

// SetEndpoint sets the endpoint of a peer. It never adds one that is missing.
func (u *Underlay) SetEndpoint(peer wgtypes.Key, to netip.AddrPort) error {
	if err := u.setEndpoint(peer, to); err != nil {
		return fmt.Errorf("set endpoint of peer %s to %s: %w", peer, to, err)
	}
	return nil
}

func (u *Underlay) setEndpoint(peer wgtypes.Key, to netip.AddrPort) error {
	if tun := u.userspace(); tun != nil {
		return tun.setEndpoint(peer, to)
	}
	return u.withControl(func(c *wgctrl.Client) error {
		return c.ConfigureDevice(u.name, wgtypes.Config{Peers: []wgtypes.PeerConfig{
			{PublicKey: peer, UpdateOnly: true, Endpoint: net.UDPAddrFromAddrPort(to)},
		}})
	})
}

// userspace returns the device that this process runs, or nil.
func (u *Underlay) userspace() *userspace {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.listener.tun
}

// withControl calls f with an open client of WireGuard's control interface. It is opened
// again after each error: the device may have changed to the other implementation.
func (u *Underlay) withControl(f func(*wgctrl.Client) error) error {
	u.controlMu.Lock()
	defer u.controlMu.Unlock()
	if u.control == nil {
		c, err := openControl()
		if err != nil {
			return err
		}
		u.control = c
	}
	err := f(u.control)
	if err != nil {
		_ = u.control.Close()
		u.control = nil
	}
	return err
}

func (u *Underlay) closeControl() {
	u.controlMu.Lock()
	defer u.controlMu.Unlock()
	if u.control != nil {
		_ = u.control.Close()
		u.control = nil
	}
}

// ownLink reports whether the link with an index is meshd's: the device, the VXLAN device, or
// the pods' bridge.
func (u *Underlay) ownLink(index int) (bool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if own, ok := u.links[index]; ok {
		return own, nil
	}
	link, err := u.nl.LinkByIndex(index)
	if err != nil {
		return false, fmt.Errorf("read link %d: %w", index, err)
	}
	own := slices.Contains(u.own, link.Attrs().Name)
	u.links[index] = own
	return own, nil
}
