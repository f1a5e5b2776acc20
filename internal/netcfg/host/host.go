// SPDX-License-Identifier: Apache-2.0

// Package host is the edge to the kernel: it observes what meshd owns on a host, applies
// plans of package netcfg, and reports when something has changed. It also reads the
// packet filters of other programs.
//
// # Firewall
//
// Rules are nft text. They are sent to the kernel through sigs.k8s.io/knftables, which
// runs `nft -f` once for the whole table, so that no packet meets a partial change.
// google/nftables would need no nft binary, but there a rule is a list of register
// operations: nobody could read it in a plan, compare it with the output of `nft list
// ruleset`, or try it by hand. Rules change rarely, so one process per change is cheap
// enough. The table is read often, and the elements of its sets change with each node that
// comes, goes or moves, so that uses netlink, with google/nftables and without a process.
// The kernel doesn't keep the text of a rule, and nft prints it in a form that differs
// between versions. So each rule carries a hash of its text as a comment, and the hashes
// are compared.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// deviceAlias is the link alias (ip link: "alias meshd") that marks a device as ours. A
// link that only has our name may belong to another program, so it is never changed.
const deviceAlias = "meshd"

// linkAlias marks the devices of links to other clusters.
const linkAlias = "meshd link"

// netlinkTimeout limits a request to the kernel, which normally answers in milliseconds.
const netlinkTimeout = 30 * time.Second

// ErrForeignDevice means that a link with the name of our device exists but is not ours:
// it doesn't have the alias "meshd".
var ErrForeignDevice = errors.New("the link is not meshd's; delete it, or choose another name with `wireguard.interface`")

// Options are the settings of a Kernel.
type Options struct {
	Logger    *slog.Logger // nil for none
	Interface string       // name of the WireGuard device
	Bridge    string       // name of the CNI bridge
	// Tunnel means that the device is that of a client, beside which a daemon, and other clients, may run
	// on the same host. Capture means that the client's tunnels take all packets of the host, see
	// netcfg.Tunnel; then no other one may do so.
	Tunnel, Capture bool
	// Link means that the device is a daemon's link to another cluster, see RemoveLinks.
	Link bool
}

// Kernel observes what meshd owns on this host, in the network namespace of the calling
// process, and applies plans to it. It does not remember what it did before: it reads the
// kernel each time.
//
// Methods may be called from several goroutines.
type Kernel struct {
	log    *slog.Logger
	name   string
	bridge string
	// By these what is ours is told from what others own.
	protocol netlink.RouteProtocol
	table    string
	alias    string
	tunnel   bool // only the device and what leads there is ours

	writes     atomic.Uint64
	vxlanIndex atomic.Uint32 // last known link index of our VXLAN device, for Watch
	underlay   *Underlay

	mu       sync.Mutex // held by the one reader or writer of the host
	nl       *netlink.Handle
	nft      *nftables.Conn
	firewall firewallWriter
	filters  filters
	tun      *userspace // nil unless this process runs WireGuard itself
}

// Open opens the connections to the kernel and changes nothing. It needs CAP_NET_ADMIN.
func Open(o Options) (*Kernel, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if err := nl.SetSocketTimeout(netlinkTimeout); err != nil {
		nl.Close()
		return nil, fmt.Errorf("set timeout of rtnetlink: %w", err)
	}
	nft, err := nftables.New(nftables.AsLasting())
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("open nftables netlink (does the kernel have nf_tables?): %w", err)
	}
	k := &Kernel{
		log: o.Logger, name: o.Interface, bridge: o.Bridge, underlay: newUnderlay(o, nl), nl: nl, nft: nft,
		protocol: netcfg.RouteProtocol, table: netcfg.FirewallTable, alias: deviceAlias, tunnel: o.Tunnel && !o.Capture,
	}
	if o.Link {
		k.alias = linkAlias
	}
	if o.Tunnel {
		k.protocol, k.table = netcfg.TunnelRouteProtocol, netcfg.TunnelTable
	}
	return k, nil
}

// Close closes the connections to the kernel. Device, addresses, routes and rules remain
// on the host. Only a userspace device stops carrying packets.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.underlay.Close()
	k.closeTUN()
	k.nl.Close()
	if nftErr := k.nft.CloseLasting(); nftErr != nil {
		err = errors.Join(err, fmt.Errorf("close nftables netlink: %w", nftErr))
	}
	return err
}

// Writes returns how many times the host was written to: netlink requests that change
// something, nft transactions, WireGuard configurations, sysctls. Reconciling a host that
// is already in its desired state adds nothing.
func (k *Kernel) Writes() uint64 { return k.writes.Load() }

// Observe reads everything that meshd owns on the host. It reads only those kernel
// parameters that are in want. Errors match ErrForeignDevice if another program uses the
// name of our device.
func (k *Kernel) Observe(ctx context.Context, want netcfg.State) (netcfg.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()

	var s netcfg.State
	link, err := k.ownLink()
	if err != nil {
		return netcfg.State{}, err
	}
	if link != nil {
		if s.Device, s.Peers, err = k.observeDevice(link); err != nil {
			return netcfg.State{}, err
		}
		if s.Addresses, err = k.observeAddresses(link); err != nil {
			return netcfg.State{}, err
		}
	}
	k.underlay.follow(k.listener(s.Device))
	if s.Sysctls, err = observeSysctls(want.Sysctls); err != nil {
		return netcfg.State{}, err
	}
	if s.Routes, s.Backstops, err = k.observeRoutes(); err != nil {
		return netcfg.State{}, err
	}
	if k.tunnel {
		return s, ctx.Err()
	}
	if s.VXLAN, s.Forwarding, s.Neighbors, err = k.observeVXLAN(); err != nil {
		return netcfg.State{}, err
	}
	if s.Policies, err = k.observePolicies(); err != nil {
		return netcfg.State{}, err
	}
	if s.Firewall, err = k.observeFirewall(); err != nil {
		return netcfg.State{}, err
	}
	// An error in other programs' filters must not stop the rest.
	s.Filters, s.FilterErr = k.observeFilters(ctx)
	return s, ctx.Err()
}

// ownLink returns the link of our device, or nil if there is none.
//
// A kernel WireGuard device can't be created and marked in one step. A device that has
// our name but no private key carries no traffic. It is taken for one that a killed
// daemon had created but not yet marked.
func (k *Kernel) ownLink() (netlink.Link, error) {
	link, err := k.linkByName(k.name)
	if err != nil || link == nil {
		return nil, err
	}
	kind, alias := link.Type(), link.Attrs().Alias
	known := kind == "wireguard" || kind == "tuntap"
	switch {
	case known && alias == k.alias:
		return link, nil
	case kind == "wireguard" && alias == "":
		d, err := wireguardDevice(k.name)
		if err != nil {
			return nil, err
		}
		if d.PrivateKey == (wgtypes.Key{}) {
			return link, nil
		}
	}
	return nil, fmt.Errorf("use link %s of kind %s: %w", k.name, kind, ErrForeignDevice)
}

// linkByName returns the link of that name, or nil if there is none.
func (k *Kernel) linkByName(name string) (netlink.Link, error) {
	link, err := k.nl.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read link %s: %w", name, err)
	}
	return link, nil
}

// observeDevice reads the device and its peers. If the daemon that ran a userspace device
// is gone, its TUN is reported as a device without key, port and peers.
func (k *Kernel) observeDevice(link netlink.Link) (*netcfg.Device, []netcfg.Peer, error) {
	dev := &netcfg.Device{
		Name:           k.name,
		Implementation: netcfg.Kernel,
		MTU:            link.Attrs().MTU,
		Up:             link.Attrs().Flags&net.FlagUp != 0,
	}
	if link.Type() != "tuntap" {
		peers, err := readKernelDevice(dev)
		return dev, sortPeers(peers), err
	}
	dev.Implementation = netcfg.Userspace
	d, err := wireguardDevice(k.name)
	unserved := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
	if unserved {
		return dev, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	dev.PublicKey, dev.ListenPort, dev.Mark = d.PublicKey, d.ListenPort, uint32(d.FirewallMark)

	peers := make([]netcfg.Peer, 0, len(d.Peers))
	for _, p := range d.Peers {
		peers = append(peers, toPeer(p))
	}
	return dev, sortPeers(peers), nil
}

// toPeer converts a peer. Userspace devices may report an IPv4 endpoint in its
// IPv6-mapped form.
func toPeer(p wgtypes.Peer) netcfg.Peer {
	out := netcfg.Peer{
		Key:           p.PublicKey,
		Keepalive:     p.PersistentKeepaliveInterval,
		PresharedKey:  mesh.PresharedKey(p.PresharedKey),
		LastHandshake: p.LastHandshakeTime,
		Received:      p.ReceiveBytes,
		Sent:          p.TransmitBytes,
	}
	if p.Endpoint != nil {
		ap := p.Endpoint.AddrPort()
		out.Endpoint = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	for _, n := range p.AllowedIPs {
		out.AllowedIPs = append(out.AllowedIPs, prefixOf(&n))
	}
	return out
}

// wireguardDevice reads a WireGuard device of either implementation.
func wireguardDevice(name string) (*wgtypes.Device, error) {
	c, err := openControl()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	d, err := c.Device(name)
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", name, err)
	}
	return d, nil
}

// observeAddresses reads the addresses of the device. Link-local ones belong to the
// kernel.
func (k *Kernel) observeAddresses(link netlink.Link) ([]netip.Prefix, error) {
	list, err := retryInterrupted(func() ([]netlink.Addr, error) { return k.nl.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", k.name, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if p := prefixOf(a.IPNet); !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out, nil
}

// observeRoutes reads the routes with our protocol in the tables that we write to.
func (k *Kernel) observeRoutes() (out []netcfg.Route, backstops []netip.Prefix, err error) {
	list, err := k.ownRoutes()
	if err != nil {
		return nil, nil, err
	}
	names := make(map[int]string)
	for _, r := range list {
		if r.Table != netcfg.TableOf(destination(r)) {
			continue
		}
		if isBackstop(r) {
			if r.Type == unix.RTN_BLACKHOLE {
				backstops = append(backstops, destination(r))
			}
			continue
		}
		name, ok := names[r.LinkIndex]
		if !ok && r.LinkIndex != 0 {
			link, err := k.nl.LinkByIndex(r.LinkIndex)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				continue // deleted in the meantime, together with the route
			}
			if err != nil {
				return nil, nil, fmt.Errorf("read link %d: %w", r.LinkIndex, err)
			}
			name = link.Attrs().Name
			names[r.LinkIndex] = name
		}
		src, _ := netip.AddrFromSlice(r.Src)
		via, _ := netip.AddrFromSlice(r.Gw)
		out = append(out, netcfg.Route{
			Destination: destination(r), Via: via.Unmap(), OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0,
			Link: name, Source: src.Unmap(), MTU: r.MTU,
		})
	}
	slices.SortFunc(out, netcfg.Route.Compare)
	slices.SortFunc(backstops, netip.Prefix.Compare)
	return out, slices.Compact(backstops), nil
}

// ownRoutes lists the routes with our protocol, of both families, in all tables. Of a client's, those
// on other devices belong to other clients.
func (k *Kernel) ownRoutes() ([]netlink.Route, error) {
	var out []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := retryInterrupted(func() ([]netlink.Route, error) {
			return k.nl.RouteListFiltered(family,
				&netlink.Route{Protocol: k.protocol, Table: unix.RT_TABLE_UNSPEC},
				netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		out = append(out, list...)
	}
	if !k.tunnel {
		return out, nil
	}
	link, err := k.linkByName(k.name)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(out, func(r netlink.Route) bool { return link == nil || r.LinkIndex != link.Attrs().Index }), nil
}

// dumpTries is how many times an interrupted dump is tried before its error is returned.
const dumpTries = 10

// retryInterrupted repeats a netlink dump that the kernel marked as inconsistent because
// something changed during the dump.
func retryInterrupted[T any](dump func() ([]T, error)) ([]T, error) {
	var out []T
	var err error
	for range dumpTries {
		if out, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// destination returns the destination of a route. It is 0.0.0.0/0 or ::/0 for a default
// route.
func destination(r netlink.Route) netip.Prefix {
	switch {
	case r.Dst != nil:
		return prefixOf(r.Dst)
	case r.Family == unix.AF_INET6:
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	default:
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
}

// prefixOf converts a prefix to netip.
func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// ipNetOf is the reverse of prefixOf.
func ipNetOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// InitiateHandshake makes WireGuard start its handshake with the peer that has the overlay address,
// by sending one byte to the discard port (RFC 863) of that address. If a handshake
// arrives before the other side knows our key, it is lost and is repeated only after 5 s.
// So the caller waits until both sides had time to add each other. The byte leaves by the
// device even if there is no route yet: on the default route it would start no handshake
// and would be unencrypted.
func (k *Kernel) InitiateHandshake(ctx context.Context, addr netip.Addr) error {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var bindErr error
		err := c.Control(func(fd uintptr) { bindErr = unix.BindToDevice(int(fd), k.name) })
		return errors.Join(err, bindErr)
	}}
	c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(addr, 9).String())
	if err != nil {
		return fmt.Errorf("start a handshake with %s: %w", addr, err)
	}
	_, err = c.Write([]byte{0})
	if err := errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("start a handshake with %s: %w", addr, err)
	}
	return nil
}
