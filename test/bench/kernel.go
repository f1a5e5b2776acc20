// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/host"
	"github.com/meshd/meshd/test/lab"
)

// kernelFigures are measured where the kernel speaks WireGuard. The time of an
// apply is that of one turn of the daemon's loop on the host: observe, diff,
// apply. Messages are those from the daemon to the kernel by netlink, questions
// among them; writes are what netcfg counts as such.
var kernelFigures = append([]figure{
	{name: "restart_lost_packets", unit: "packets", reduce: worst, bound: atMost(0)},
	{name: "gateway_daemon_killed_lost_packets", unit: "packets", reduce: worst, bound: atMost(0)},
	{name: "throughput_ratio_to_plain_wireguard", unit: ratio, reduce: median, bound: atLeast(0.98)},
	{name: "latency_ratio_to_plain_wireguard", unit: ratio, reduce: median},
	{name: "throughput_meshd_mbit_per_s", unit: "Mbit/s", reduce: median},
	{name: "throughput_plain_mbit_per_s", unit: "Mbit/s", reduce: median},
	{name: "throughput_bare_mbit_per_s", unit: "Mbit/s", reduce: median},
	{name: "throughput_daemon_cpu_percent", unit: "%", reduce: median},
	{name: "round_trip_meshd_us", unit: "us", reduce: median},
	{name: "round_trip_plain_us", unit: "us", reduce: median},
	{name: "round_trip_bare_us", unit: "us", reduce: median},
	{name: "know_1000_ready_ms", unit: "ms", reduce: median},
	{name: "know_1000_rss_mb", unit: "MB", reduce: median},
	{name: "know_1000_idle_cpu_percent", unit: "%", reduce: median},
	{name: "know_1000_status_ms", unit: "ms", reduce: median},
	{name: "know_1000_graph_ms", unit: "ms", reduce: median},
}, applyFigures()...)

// size is a mesh that is applied, and what the figures are called.
type size struct {
	peers                 int
	first, more, less, no string
}

// sizes are those that are measured.
var sizes = []size{
	{1000, "apply_1000_peers", "apply_one_more", "apply_one_less", "idle_reconcile"},
	{5000, "apply_5000_peers", "apply_5000_one_more", "apply_5000_one_less", "idle_5000_reconcile"},
}

// applyFigures are four for each size: from nothing, one more, one less, no change.
func applyFigures() (out []figure) {
	for _, size := range sizes {
		for _, name := range []string{size.first, size.more, size.less, size.no} {
			out = append(out,
				figure{name: name + "_ms", unit: "ms", reduce: median},
				figure{name: name + "_writes", unit: "writes", reduce: median},
				figure{name: name + "_messages", unit: "messages", reduce: median, bound: atMost(300)})
		}
	}
	return out
}

// kernelMeasurements are taken where the kernel speaks WireGuard.
func kernelMeasurements() []measurement {
	out := []measurement{
		{"restart", 1, always(measureRestarts)},
		{"gateway", 1, always(measureGatewayKill)},
		{"datapath", runs, always(measureDataPath)},
		{"many", runs, always(measureMany)},
	}
	for _, size := range sizes {
		out = append(out, measurement{size.first, runs, always(func(ctx context.Context, _ string, s samples) error {
			return measureApply(ctx, size, s)
		})})
	}
	return out
}

// packetPeriod makes 200 packets a second in each direction.
const packetPeriod = 5 * time.Millisecond

// measureRestarts kills and stops daemons of two nodes that exchange packets
// over the mesh.
func measureRestarts(ctx context.Context, binary string, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	nodes, err := l.Nodes(ctx, binary, lab.NAT, "first", "second")
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	addrs, err := overlays(ctx, nodes)
	if err != nil {
		return err
	}
	if err := awaitPairs(ctx, nodes); err != nil {
		return err
	}
	for i := range failures {
		n := nodes[i%2]
		end := n.Stop
		if i >= failures/2 {
			end = n.Kill
		}
		e, err := lab.StartExchange(
			lab.Party{At: nodes[0].Do, Addr: addrs[0]}, lab.Party{At: nodes[1].Do, Addr: addrs[1]}, packetPeriod)
		if err != nil {
			return err
		}
		err = errors.Join(end(), n.Start(), poll(ctx, n, reconciled))
		_, lost := e.Stop()
		if err != nil {
			return err
		}
		s.add("restart_lost_packets", float64(lost))
	}
	return nil
}

// reconciled is for poll: the daemon has been through its loop.
func reconciled(s control.Status) bool {
	return lab.Sees(1)(s) && !s.Reconcile.LastSuccess.IsZero() && s.Reconcile.Error == ""
}

// measureApply gives a fresh host a mesh with so many other nodes, then one more, then
// one less, then nothing new.
func measureApply(ctx context.Context, size size, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	h, err := l.Host(ctx, "host", lab.NAT)
	if err != nil {
		return err
	}
	settings, err := settingsOf()
	if err != nil {
		return err
	}
	all, err := topology(size.peers + 1)
	if err != nil {
		return err
	}
	most := all
	most.Peers = all.Peers[:size.peers]
	if _, err := h.Run(ctx, "ip", "link", "add", monitor, "up", "type", "nlmon"); err != nil {
		return err
	}
	// Everything happens on one thread, which is on the host.
	return h.Do(func() error {
		kernel, err := host.Open(host.Options{Interface: settings.Interface})
		if err != nil {
			return err
		}
		a := applier{ctx: ctx, host: kernel, samples: s}
		err = errors.Join(
			a.listen(),
			a.apply(size.first, netcfg.Desired(most, settings)),
			a.apply(size.more, netcfg.Desired(all, settings)),
			a.apply(size.less, netcfg.Desired(most, settings)),
			a.apply(size.no, netcfg.Desired(most, settings)))
		return errors.Join(err, unix.Close(a.socket), kernel.Close())
	})
}

func settingsOf() (netcfg.Settings, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return netcfg.Settings{}, fmt.Errorf("make key: %w", err)
	}
	return netcfg.Settings{
		Interface: "meshd0", Implementation: netcfg.Kernel, PrivateKey: key, ListenPort: 51820, MTU: 1420,
	}, nil
}

// topology is what Derive would make of a cluster with so many other nodes, each
// with an overlay address and a pod CIDR.
func topology(others int) (mesh.Topology, error) {
	overlay, pods := netip.MustParsePrefix("10.4.0.0/16"), netip.MustParsePrefix("10.64.0.0/10")
	c := mesh.Cluster{Overlay: []netip.Prefix{overlay}, Pods: []netip.Prefix{pods}, PodPrefix: []int{24}}
	inside := []netip.Prefix{overlay, pods}
	t := mesh.Topology{Addresses: c.Overlays(0), PodCIDRs: c.PodCIDRs(0), Inside: inside, Guarded: inside}
	for i := 1; i <= others; i++ {
		key, err := wgtypes.GenerateKey() // as good as a public one
		if err != nil {
			return t, fmt.Errorf("make key: %w", err)
		}
		p := mesh.Peer{
			ID: mesh.ID{byte(i >> 8), byte(i)}, Name: fmt.Sprintf("node-%d", i), Key: key, MTU: 1420,
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 51820)},
		}
		for _, a := range c.Overlays(i) {
			p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
		}
		p.AllowedIPs = append(p.AllowedIPs, c.PodCIDRs(i)...)
		t.Peers = append(t.Peers, p)
	}
	return t, nil
}

// applier does what the daemon's loop does with a host, and measures it.
type applier struct {
	ctx     context.Context
	host    *host.Kernel
	samples samples
	socket  int // sees all netlink packets of the host
}

func (a *applier) apply(name string, want netcfg.State) error {
	if _, err := a.messages(); err != nil { // those from before
		return err
	}
	writes, began := a.host.Writes(), time.Now()
	got, err := a.host.Observe(a.ctx, want)
	if err == nil {
		err = a.host.Apply(a.ctx, netcfg.Diff(got, want, netcfg.Options{Now: time.Now(), Prune: true}))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	a.samples.add(name+"_ms", milliseconds(time.Since(began)))
	a.samples.add(name+"_writes", float64(a.host.Writes()-writes))
	messages, err := a.messages()
	a.samples.add(name+"_messages", float64(messages))
	return err
}

// monitor is the name of the link on which a copy of each netlink packet
// arrives; see drivers/net/nlmon.c in the kernel's source.
const monitor = "nlmon0"

// monitorBuffer holds the copies of one apply.
const monitorBuffer = 64 << 20

// listen opens a socket for the monitor's packets.
func (a *applier) listen() error {
	link, err := net.InterfaceByName(monitor)
	if err != nil {
		return fmt.Errorf("monitor netlink: %w", err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network byte order
	a.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
	if err == nil {
		err = errors.Join(
			unix.SetsockoptInt(a.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, monitorBuffer),
			unix.Bind(a.socket, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}))
	}
	if err != nil {
		return fmt.Errorf("monitor netlink: %w", err)
	}
	return nil
}

// messages counts the requests to the kernel since it was last called. One packet
// may carry several; answers and notifications lack the flag.
func (a *applier) messages() (int, error) {
	buf := make([]byte, 1<<20)
	count := 0
	for {
		n, _, err := unix.Recvfrom(a.socket, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return count, nil
		}
		if err != nil {
			return count, fmt.Errorf("monitor netlink: %w", err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			length := int(binary.NativeEndian.Uint32(b)+3) &^ 3
			if binary.NativeEndian.Uint16(b[6:])&unix.NLM_F_REQUEST != 0 {
				count++
			}
			b = b[min(max(length, unix.NLMSG_HDRLEN), len(b)):]
		}
	}
}
