// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/netcfg"
)

// Apply carries out a plan, in the order of the plan. It is idempotent: adding what
// exists and deleting what is missing succeed. If a step fails, the others are still
// done, except that nothing which needs the device is tried without it. All errors are
// returned joined, among them a RefusedStep for each route, entry and peer that the
// kernel refuses. Errors match ErrForeignDevice and errNoBridgeNetfilter.
func (k *Kernel) Apply(ctx context.Context, p netcfg.Plan) error {
	k.mu.Lock()
	defer k.mu.Unlock()

	var errs []error
	if p.Firewall != nil {
		errs = append(errs, k.applyFirewall(ctx, *p.Firewall, p.Sets), k.forgetRedirected(p.OwnPorts))
	}
	for _, dst := range p.Backstops {
		errs = append(errs, k.addBackstop(dst))
	}
	for _, policy := range p.Policies {
		errs = append(errs, k.addPolicy(policy))
	}
	for _, c := range p.Accepts {
		errs = append(errs, k.applyAccept(ctx, c))
	}
	if p.Device != nil {
		if err := k.applyDevice(*p.Device); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if p.VXLAN != nil {
		if err := k.applyVXLAN(*p.VXLAN); err != nil {
			errs = append(errs, err)
			p = p.WithoutVXLAN()
		}
	}
	for _, s := range p.Sysctls {
		errs = append(errs, k.setSysctl(ctx, s))
	}
	for _, a := range p.Addresses {
		errs = append(errs, k.addAddress(a))
	}
	errs = append(errs, k.addEntries(p.Forwarding, p.Neighbors))
	links := make(linkIndexes)
	for _, r := range p.Routes {
		errs = append(errs, k.addRoute(r, links))
	}
	errs = append(errs, k.changePeers(p))
	for _, r := range p.MovedRoutes {
		errs = append(errs, k.addRoute(r, links))
	}
	errs = append(errs, k.prune(ctx, p))
	return errors.Join(append(errs, ctx.Err())...)
}

// prune carries out the removals of a plan.
func (k *Kernel) prune(ctx context.Context, p netcfg.Plan) error {
	var errs []error
	for _, r := range p.StaleRoutes {
		errs = append(errs, k.deleteRoute(r))
	}
	errs = append(errs, k.forgetStranded(p.Forgotten))
	errs = append(errs, k.deleteEntries(p.StaleForwarding, p.StaleNeighbors))
	if p.StaleVXLAN != "" {
		errs = append(errs, k.deleteVXLAN())
	}
	for _, a := range p.StaleAddresses {
		errs = append(errs, k.deleteAddress(a))
	}
	if p.StaleDevice != "" {
		errs = append(errs, k.deleteDevice())
	}
	for _, policy := range p.StalePolicies {
		errs = append(errs, k.deletePolicy(policy))
	}
	for _, dst := range p.StaleBackstops {
		errs = append(errs, k.delRoute(k.backstop(dst)))
	}
	if p.StaleFirewall {
		errs = append(errs, k.deleteFirewall(ctx))
	}
	return errors.Join(errs...)
}

// applyDevice creates the device or changes it.
func (k *Kernel) applyDevice(c netcfg.DeviceChange) error {
	if c.Replace {
		if err := k.deleteDevice(); err != nil {
			return err
		}
	}
	link, err := k.ensureDevice(c.Device)
	if err != nil {
		return err
	}

	var cfg wgtypes.Config
	if c.SetKey {
		key := c.Device.PrivateKey()
		cfg.PrivateKey = &key
	}
	if c.SetPort {
		cfg.ListenPort = &c.Device.ListenPort
	}
	if c.SetMark {
		mark := int(c.Device.Mark)
		cfg.FirewallMark = &mark
	}
	if c.SetKey || c.SetPort || c.SetMark {
		if err := k.configure(cfg); err != nil {
			return explainPort(err, c.Device.ListenPort)
		}
	}
	if c.SetMTU {
		k.writes.Add(1)
		if err := k.nl.LinkSetMTU(link, c.Device.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", k.name, c.Device.MTU, err)
		}
	}
	if c.SetUp {
		k.writes.Add(1)
		if err := k.nl.LinkSetUp(link); err != nil {
			return explainPort(fmt.Errorf("set %s up: %w", k.name, err), c.Device.ListenPort)
		}
	}
	if k.tun != nil && c.Device.Up {
		return explainPort(k.checkPort(c.Device.ListenPort), c.Device.ListenPort)
	}
	return nil
}

// checkPort ensures that a userspace device listens on its port. A kernel device refuses
// to come up if it can't. But wireguard-go watches the state of its link on a goroutine
// of its own. If it can't open the port, it forgets the port, reports nothing, and takes
// any other one the next time. Setting the port again on a device that is up returns the
// error.
func (k *Kernel) checkPort(port int) error {
	if err := k.tun.dev.Up(); err != nil {
		return fmt.Errorf("start userspace device %s: %w", k.name, err)
	}
	d, err := wireguardDevice(k.name)
	if err != nil || d.ListenPort == port {
		return err
	}
	return k.configure(wgtypes.Config{ListenPort: &port})
}

// explainPort adds the port to an error that is about the UDP port. wgctrl returns the
// error number of a userspace device only as text.
func explainPort(err error, port int) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("listen on UDP port %d (`wireguard.listen-port`): %w", port, err)
	case strings.HasSuffix(err.Error(), fmt.Sprintf("errno=%d", ipc.IpcErrorPortInUse)):
		return fmt.Errorf("listen on UDP port %d (`wireguard.listen-port`): %w: %w", port, unix.EADDRINUSE, err)
	}
	return err
}

// ensureDevice returns the link of our device. It creates the device if there is none,
// and attaches to it if it is a TUN without a serving process.
func (k *Kernel) ensureDevice(d netcfg.Device) (netlink.Link, error) {
	link, err := k.ownLink()
	if err != nil {
		return nil, err
	}
	switch {
	case link == nil:
		err = k.createDevice(d)
	case link.Type() == "tuntap":
		err = k.attach(d)
	case link.Attrs().Alias != k.alias:
		err = k.mark()
	}
	if err != nil {
		return nil, err
	}
	if link != nil {
		return link, nil
	}
	if link, err = k.ownLink(); err == nil && link == nil {
		err = fmt.Errorf("create device %s: it is missing afterwards", k.name)
	}
	return link, err
}

// createDevice creates the device. It uses the kernel's implementation if that is
// required, or if it is available and not excluded.
func (k *Kernel) createDevice(d netcfg.Device) error {
	if d.Implementation == netcfg.Userspace {
		return k.openTUN(d)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = k.name, d.MTU
	k.writes.Add(1)
	err := k.nl.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case err == nil:
		return k.mark()
	case !errors.Is(err, unix.EOPNOTSUPP): // what rtnetlink returns for an unknown kind of link
		return fmt.Errorf("create device %s: %w", k.name, err)
	case d.Implementation == netcfg.Kernel:
		return fmt.Errorf("create device %s: this kernel has no WireGuard (`modprobe wireguard`); `wireguard.implementation: auto` uses the userspace implementation then: %w", k.name, err)
	}
	k.log.Info("kernel has no WireGuard, using the userspace implementation", "link", k.name)
	return k.openTUN(d)
}

// attach makes this process serve the TUN, unless a process already does.
func (k *Kernel) attach(d netcfg.Device) error {
	if _, err := wireguardDevice(k.name); err == nil {
		return nil
	}
	if k.tun != nil && k.tun.alive() {
		return k.tun.relisten()
	}
	return k.openTUN(d)
}

// openTUN makes this process serve the TUN of our name. It creates the TUN if necessary.
func (k *Kernel) openTUN(d netcfg.Device) error {
	k.closeTUN()
	k.writes.Add(1)
	u, err := openUserspace(k.name, d.MTU, &bind{probes: k.underlay.received}, k.log, k.mark)
	if err != nil {
		return err
	}
	k.tun = u
	return nil
}

func (k *Kernel) closeTUN() {
	if k.tun != nil {
		k.tun.Close()
		k.tun = nil
	}
}

// mark sets our alias on the link of our name.
func (k *Kernel) mark() error {
	link, err := k.nl.LinkByName(k.name)
	if err != nil {
		return fmt.Errorf("read link %s: %w", k.name, err)
	}
	k.writes.Add(1)
	if err := k.nl.LinkSetAlias(link, k.alias); err != nil {
		return fmt.Errorf("set alias of %s: %w", k.name, err)
	}
	return nil
}

// deleteDevice deletes our device if there is one.
func (k *Kernel) deleteDevice() error {
	link, err := k.ownLink()
	if err != nil {
		return err
	}
	k.closeTUN()
	if link == nil {
		return nil
	}
	k.writes.Add(1)
	if err := k.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", k.name, err)
	}
	return nil
}

// configure changes the WireGuard configuration of the device.
func (k *Kernel) configure(cfg wgtypes.Config) error {
	c, err := openControl()
	if err != nil {
		return err
	}
	defer c.Close()
	return k.configureBy(c, cfg)
}

// openControl opens the control of WireGuard devices. A client detects only when it is opened
// whether the kernel supports WireGuard, and the module may be loaded later.
func openControl() (*wgctrl.Client, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("open WireGuard control: %w", err)
	}
	return c, nil
}

func (k *Kernel) configureBy(c *wgctrl.Client, cfg wgtypes.Config) error {
	k.writes.Add(1)
	if err := c.ConfigureDevice(k.name, cfg); err != nil {
		return fmt.Errorf("configure device %s: %w", k.name, err)
	}
	return nil
}

// address converts a prefix to an address of the device. Duplicate address detection is
// off: there are no neighbours on the device, and it would delay the address. The kernel
// must not add an on-link route for the prefix, because that route would not have our
// protocol.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNetOf(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	}
	return a
}

func (k *Kernel) addAddress(p netip.Prefix) error {
	link, err := k.ownLink()
	if err == nil && link == nil {
		err = unix.ENODEV
	}
	if err == nil {
		k.writes.Add(1)
		err = k.nl.AddrReplace(link, address(p))
	}
	if err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, k.name, err)
	}
	return nil
}

func (k *Kernel) deleteAddress(p netip.Prefix) error {
	link, err := k.ownLink()
	if err == nil && link == nil {
		return nil
	}
	if err == nil {
		k.writes.Add(1)
		err = k.nl.AddrDel(link, &netlink.Addr{IPNet: ipNetOf(p)})
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete address %s from %s: %w", p, k.name, err)
	}
	return nil
}

// addRoute adds a route, or replaces our route to the same destination. The kernel's
// replace request would replace any program's route, so it is used only if the existing
// route is known to be ours.
func (k *Kernel) addRoute(c netcfg.RouteChange, links linkIndexes) error {
	if err := k.tryAddRoute(c, links); err != nil {
		return refusedStep(fmt.Errorf("add route %s: %w", c.Route.Destination, err))
	}
	return nil
}

func (k *Kernel) tryAddRoute(c netcfg.RouteChange, links linkIndexes) error {
	index, err := links.of(c.Route.Link, k.nl)
	if err != nil {
		return err
	}
	r := &netlink.Route{
		Dst:       ipNetOf(c.Route.Destination),
		LinkIndex: index,
		Protocol:  k.protocol,
		Scope:     netlink.SCOPE_LINK,
		Table:     netcfg.TableOf(c.Route.Destination),
		MTU:       c.Route.MTU,
	}
	if c.Route.Source.IsValid() {
		r.Src = c.Route.Source.AsSlice()
	}
	if c.Route.Via.IsValid() {
		r.Gw, r.Scope = c.Route.Via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if c.Route.OnLink {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	if c.Old == nil {
		k.writes.Add(1)
		if err := k.nl.RouteAdd(r); !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := k.checkOwnRoute(c.Route.Destination); err != nil {
			return err
		}
	}
	k.writes.Add(1)
	return k.nl.RouteReplace(r)
}

// linkIndexes are the indexes of the links that the routes of one plan use, by name.
type linkIndexes map[string]int

// of returns the index of a link, and asks the kernel for it only once.
func (l linkIndexes) of(name string, nl *netlink.Handle) (int, error) {
	if index, ok := l[name]; ok {
		return index, nil
	}
	link, err := nl.LinkByName(name)
	if err != nil {
		return 0, err
	}
	l[name] = link.Attrs().Index
	return l[name], nil
}

// checkOwnRoute returns an error unless one of our routes has this destination.
func (k *Kernel) checkOwnRoute(dst netip.Prefix) error {
	routes, err := k.ownRoutes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Table == netcfg.TableOf(dst) && destination(r) == dst && !isBackstop(r) {
			return nil
		}
	}
	return fmt.Errorf("a route that is not meshd's has this destination (`ip route show %s`)", dst)
}

func (k *Kernel) deleteRoute(r netcfg.Route) error {
	del := &netlink.Route{
		Dst:      ipNetOf(r.Destination),
		Protocol: k.protocol,
		Scope:    netlink.SCOPE_NOWHERE, // any
		Table:    netcfg.TableOf(r.Destination),
	}
	if r.Via.IsValid() {
		del.Gw = r.Via.AsSlice()
	}
	if r.Link != "" {
		link, err := k.linkByName(r.Link)
		if err != nil {
			return err
		}
		if link == nil {
			return nil // the route was deleted with it
		}
		del.LinkIndex = link.Attrs().Index
	}
	return k.delRoute(del)
}

func (k *Kernel) delRoute(r *netlink.Route) error {
	k.writes.Add(1)
	if err := k.nl.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete route %s: %w", destination(*r), err)
	}
	return nil
}
