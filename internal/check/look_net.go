// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/https"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/host"
)

// lookDevices reads netcfg's facts and looks for foreign devices with our names. It
// returns the UDP ports of our devices.
func (f *Facts) lookDevices(ctx context.Context, cfg config.Config) (ours []int) {
	kernel, err := host.Open(host.Options{Interface: cfg.WireGuard.Interface, Bridge: cfg.CNI.Bridge})
	if err != nil {
		f.Unread = append(f.Unread, Unread{"host", err})
		return nil
	}
	defer kernel.Close()
	f.read("uplink", func() (err error) { f.Host, err = kernel.Facts(ctx); return err })
	if !f.Capable {
		return nil
	}
	observed, err := kernel.Observe(ctx, netcfg.State{})
	switch {
	case errors.Is(err, host.ErrForeignDevice):
		f.ForeignDevice = true
		return nil
	case err != nil:
		f.Unread = append(f.Unread, Unread{"device", err})
		return nil
	}
	if observed.Device != nil {
		ours = append(ours, observed.Device.ListenPort)
	}
	if observed.VXLAN != nil {
		return append(ours, observed.VXLAN.Port)
	}
	name := netcfg.VXLANName(cfg.WireGuard.Interface)
	f.ForeignVXLAN = slices.ContainsFunc(f.Links, func(l Link) bool { return l.Name == name })
	return ours
}

func (f *Facts) lookLinks() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		f.Links = append(f.Links, Link{Name: l.Attrs().Name, Kind: l.Type()})
	}
	return nil
}

// lookPorts tries to listen on the ports that meshd needs.
func (f *Facts) lookPorts(cfg config.Config, ours []int) error {
	bind := cfg.Gossip.Bind
	f.Ports = []Port{
		{Network: "udp", Port: uint16(cfg.WireGuard.ListenPort), Key: "wireguard.listen-port"},
		{Network: "udp", Address: bind.Addr(), Port: bind.Port(), Key: "gossip.bind"},
		{Network: "tcp", Address: bind.Addr(), Port: bind.Port(), Key: "gossip.bind"},
	}
	if l := cfg.Relay.Listen; l.Port() != 0 {
		f.Ports = append(f.Ports, Port{Network: "tcp", Address: l.Addr(), Port: l.Port(), Key: "relay.listen"})
	}
	if l := cfg.Metrics.Listen; l.Port() != 0 {
		f.Ports = append(f.Ports, Port{Network: "tcp", Address: l.Addr(), Port: l.Port(), Key: "metrics.listen"})
	}
	if wantsVXLAN(cfg) {
		f.Ports = append(f.Ports, Port{Network: "udp", Port: netcfg.VXLANPort, Key: vxlanKey})
	}
	own, _ := os.ReadFile("/proc/self/comm")
	var errs []error
	for i := range f.Ports {
		p := &f.Ports[i]
		address := ""
		if p.Address.IsValid() {
			address = p.Address.String()
		}
		err := listen(p.Network, net.JoinHostPort(address, strconv.Itoa(int(p.Port))))
		switch {
		case err == nil:
			p.State = PortFree
		case errors.Is(err, unix.EADDRNOTAVAIL):
			p.State = PortForeign
		case errors.Is(err, unix.EADDRINUSE):
			p.State, p.Process = PortTaken, processOn(p.Network, p.Port)
			p.Ours = f.Running && p.Process.Name == strings.TrimSpace(string(own)) || p.Network == "udp" && slices.Contains(ours, int(p.Port))
		default:
			p.State = PortFree // not known; the caller reports the error
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// vxlanKey is the setting that decides whether the port is needed.
const vxlanKey = "cluster.encapsulation"

// wantsVXLAN reports whether this node will have a VXLAN device once its location has
// another node.
func wantsVXLAN(cfg config.Config) bool {
	return cfg.Node.Location != "" && cfg.Cluster.Mode != mesh.ModeFull && cfg.Cluster.Encapsulation != mesh.EncapsulationNever
}

// listen opens a socket on a port and closes it at once.
func listen(network, address string) error {
	if network == "tcp" {
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		return l.Close()
	}
	c, err := net.ListenPacket(network, address)
	if err != nil {
		return err
	}
	return c.Close()
}

// processOn returns the process that uses a port. It finds it by the inode of the socket.
// It is not known if the kernel uses the port or the process can't be seen.
func processOn(network string, port uint16) Process {
	var sockets []string
	for _, path := range []string{"/proc/thread-self/net/" + network, "/proc/thread-self/net/" + network + "6"} {
		sockets = append(sockets, socketsOn(path, port)...)
	}
	files, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return Process{}
	}
	for _, file := range files {
		target, err := os.Readlink(file)
		if err != nil || !slices.Contains(sockets, target) {
			continue
		}
		proc := filepath.Dir(filepath.Dir(file))
		comm, _ := os.ReadFile(filepath.Join(proc, "comm"))
		pid, _ := strconv.Atoi(filepath.Base(proc))
		return Process{strings.TrimSpace(string(comm)), pid}
	}
	return Process{}
}

// socketsOn returns the sockets that are bound to a port, from a file such as
// /proc/net/udp (proc_net(5)), in the form of the links in /proc/PID/fd. TCP connections
// from that port are left out.
func socketsOn(path string, port uint16) []string {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	const listening, unconnected = "0A", "07"
	var sockets []string
	for in := bufio.NewScanner(file); in.Scan(); {
		f := strings.Fields(in.Text())
		if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && (f[3] == listening || f[3] == unconnected) {
			sockets = append(sockets, "socket:["+f[9]+"]")
		}
	}
	return sockets
}

// reachTimeout bounds the time for all other hosts, which are tried in parallel.
const reachTimeout = 5 * time.Second

// reach looks up the names in the configuration, and greets the nodes of the join list.
func reach(ctx context.Context, cfg config.Config, own []netip.Addr) []Reach {
	var all []Reach
	for i, j := range cfg.Join {
		all = append(all, Reach{Key: fmt.Sprintf("join[%d]", i), Host: j.Host, Port: j.Port})
	}
	if cfg.Node.Endpoint.Host != "" {
		all = append(all, Reach{Key: "node.endpoint", Host: cfg.Node.Endpoint.Host})
	}
	if cfg.Gossip.Advertise.Host != "" {
		all = append(all, Reach{Key: "gossip.advertise", Host: cfg.Gossip.Advertise.Host})
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	proxy := https.ProxyFromEnvironment()
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { all[i].try(ctx, cfg, proxy, own) })
	}
	wg.Wait()
	return all
}

// try resolves the name and connects, and sets the errors. It is enough if one of several
// addresses answers. An address of this host itself need not answer.
func (r *Reach) try(ctx context.Context, cfg config.Config, proxy *https.Proxy, own []netip.Addr) {
	at := net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port)))
	if mesh.IsTLSPort(r.Port) && proxy.Covers(at) { // which looks up the name
		r.Proxy = proxy.String()
		r.connect(ctx, cfg, func() (net.Conn, error) { return proxy.Dial(ctx, at) })
		return
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", r.Host)
	if err != nil {
		r.ResolveErr = err
		return
	}
	if r.Port == 0 {
		return
	}
	if r.Own = slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(own, a.Unmap()) }); r.Own {
		return
	}
	r.connect(ctx, cfg, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", at) })
}

// connect dials, runs the handshake of TLS where nodes do so, and greets the node.
func (r *Reach) connect(ctx context.Context, cfg config.Config, dial func() (net.Conn, error)) {
	conn, err := dial()
	if err != nil {
		r.DialErr = err
		return
	}
	defer conn.Close()
	if mesh.IsTLSPort(r.Port) {
		secured, _, isNode, err := https.Open(ctx, conn, r.Host)
		if err != nil {
			r.DialErr = err
			return
		}
		conn, r.Foreign = secured, !isNode
	}
	if len(cfg.Secrets) > 0 {
		r.Looked, r.LookErr = gossip.Look(ctx, conn, r.place(), cfg.Secrets, cfg.Cluster)
	}
}

// place names the host in texts, with its port if that is not the usual one.
func (r *Reach) place() string {
	return config.HostPort{Host: r.Host, Port: r.Port}.String()
}
