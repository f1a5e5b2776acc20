// SPDX-License-Identifier: Apache-2.0

package netcfg

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
)

// Apply does what a plan says, in the plan's order. It is idempotent: adding
// what is there and deleting what is missing succeed. A step that fails doesn't
// keep the others from being done, except that nothing which needs the device
// is tried without it; all errors come back joined, among them a RefusedStep for
// each route, entry and peer that the kernel does not take. Errors match
// ErrForeignDevice and ErrNoBridgeNetfilter.
func (h *Host) Apply(ctx context.Context, p Plan) error {
	h.mu.Lock()
	defer h.mu.Unlock()

	var errs []error
	if p.Firewall != nil {
		errs = append(errs, h.replaceFirewall(ctx, *p.Firewall), h.forgetTaken(p.ownPorts))
	}
	for _, dst := range p.Backstops {
		errs = append(errs, h.addBackstop(dst))
	}
	for _, c := range p.Accepts {
		errs = append(errs, h.applyAccept(ctx, c))
	}
	if p.Device != nil {
		if err := h.applyDevice(*p.Device); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if p.VXLAN != nil {
		if err := h.applyVXLAN(*p.VXLAN); err != nil {
			errs = append(errs, err)
			p = p.withoutVXLAN()
		}
	}
	for _, s := range p.Sysctls {
		errs = append(errs, h.setSysctl(ctx, s))
	}
	for _, a := range p.Addresses {
		errs = append(errs, h.addAddress(a))
	}
	errs = append(errs, h.addEntries(p.Forwarding, p.Neighbors))
	for _, r := range p.Routes {
		errs = append(errs, h.addRoute(r))
	}
	errs = append(errs, h.changePeers(p))
	for _, r := range p.MovedRoutes {
		errs = append(errs, h.addRoute(r))
	}
	errs = append(errs, h.prune(ctx, p))
	return errors.Join(append(errs, ctx.Err())...)
}

// prune takes away what a plan says.
func (h *Host) prune(ctx context.Context, p Plan) error {
	var errs []error
	for _, r := range p.StaleRoutes {
		errs = append(errs, h.deleteRoute(r))
	}
	errs = append(errs, h.forgetStranded(p.StaleRoutes))
	errs = append(errs, h.deleteEntries(p.StaleForwarding, p.StaleNeighbors))
	if p.StaleVXLAN != "" {
		errs = append(errs, h.deleteVXLAN())
	}
	for _, a := range p.StaleAddresses {
		errs = append(errs, h.deleteAddress(a))
	}
	if p.StaleDevice != "" {
		errs = append(errs, h.deleteDevice())
	}
	for _, dst := range p.StaleBackstops {
		errs = append(errs, h.delRoute(backstop(dst)))
	}
	if p.StaleFirewall {
		errs = append(errs, h.deleteFirewall(ctx))
	}
	return errors.Join(errs...)
}

// applyDevice makes the device, or makes it what it should be.
func (h *Host) applyDevice(c DeviceChange) error {
	if c.Replace {
		if err := h.deleteDevice(); err != nil {
			return err
		}
	}
	link, err := h.ensureDevice(c.Device)
	if err != nil {
		return err
	}

	var cfg wgtypes.Config
	if c.SetKey {
		cfg.PrivateKey = &c.Device.privateKey
	}
	if c.SetPort {
		cfg.ListenPort = &c.Device.ListenPort
	}
	if c.SetKey || c.SetPort {
		if err := h.configure(cfg); err != nil {
			return explainPort(err, c.Device.ListenPort)
		}
	}
	if c.SetMTU {
		h.writes.Add(1)
		if err := h.nl.LinkSetMTU(link, c.Device.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", h.name, c.Device.MTU, err)
		}
	}
	if c.SetUp {
		h.writes.Add(1)
		if err := h.nl.LinkSetUp(link); err != nil {
			return explainPort(fmt.Errorf("set %s up: %w", h.name, err), c.Device.ListenPort)
		}
	}
	if h.tun != nil && c.Device.Up {
		return explainPort(h.checkPort(c.Device.ListenPort), c.Device.ListenPort)
	}
	return nil
}

// checkPort sees to it that a userspace device listens on its port. The kernel's
// refuses to come up if it can't. Wireguard-go follows its link instead, on a
// goroutine of its own: it forgets a port that it can't open, tells nobody, and
// takes any other the next time. To set the port of a device that is up gives
// the reason.
func (h *Host) checkPort(port int) error {
	if err := h.tun.dev.Up(); err != nil {
		return fmt.Errorf("start userspace device %s: %w", h.name, err)
	}
	d, err := wireguardDevice(h.name)
	if err != nil || d.ListenPort == port {
		return err
	}
	return h.configure(wgtypes.Config{ListenPort: &port})
}

// explainPort adds to an error that is about the UDP port which port it is.
// wgctrl gives the error number of a userspace device as text only.
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

// ensureDevice returns the link of our device, after it has made the device if
// there is none, and attached to it if it is a TUN that nobody serves.
func (h *Host) ensureDevice(d Device) (netlink.Link, error) {
	link, err := h.ownLink()
	if err != nil {
		return nil, err
	}
	switch {
	case link == nil:
		err = h.createDevice(d)
	case link.Type() == "tuntap":
		err = h.attach(d)
	case link.Attrs().Alias != deviceAlias:
		err = h.mark()
	}
	if err != nil {
		return nil, err
	}
	if link != nil {
		return link, nil
	}
	if link, err = h.ownLink(); err == nil && link == nil {
		err = fmt.Errorf("create device %s: it vanished at once", h.name)
	}
	return link, err
}

// createDevice makes the device, of the kernel's implementation if that is
// wanted or to be had.
func (h *Host) createDevice(d Device) error {
	if d.Implementation == Userspace {
		return h.openTUN(d)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = h.name, d.MTU
	h.writes.Add(1)
	err := h.nl.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case err == nil:
		return h.mark()
	case !errors.Is(err, unix.EOPNOTSUPP): // what rtnetlink says to an unknown kind of link
		return fmt.Errorf("create device %s: %w", h.name, err)
	case d.Implementation == Kernel:
		return fmt.Errorf("create device %s: this kernel has no WireGuard (`modprobe wireguard`); `wireguard.implementation: auto` does without: %w", h.name, err)
	}
	h.log.Info("kernel has no WireGuard, using the userspace implementation", "link", h.name)
	return h.openTUN(d)
}

// attach makes this process serve the TUN, unless it or another one does.
func (h *Host) attach(d Device) error {
	if _, err := wireguardDevice(h.name); err == nil {
		return nil
	}
	if h.tun != nil && h.tun.alive() {
		return h.tun.relisten()
	}
	return h.openTUN(d)
}

// openTUN makes this process serve the TUN of our name, existing or new.
func (h *Host) openTUN(d Device) error {
	h.closeTUN()
	h.writes.Add(1)
	u, err := openUserspace(h.name, d.MTU, h.log, h.mark)
	if err != nil {
		return err
	}
	h.tun = u
	return nil
}

func (h *Host) closeTUN() {
	if h.tun != nil {
		h.tun.Close()
		h.tun = nil
	}
}

// mark writes our alias to the link of our name.
func (h *Host) mark() error {
	link, err := h.nl.LinkByName(h.name)
	if err != nil {
		return fmt.Errorf("read link %s: %w", h.name, err)
	}
	h.writes.Add(1)
	if err := h.nl.LinkSetAlias(link, deviceAlias); err != nil {
		return fmt.Errorf("set alias of %s: %w", h.name, err)
	}
	return nil
}

// deleteDevice deletes our device, if there is one.
func (h *Host) deleteDevice() error {
	link, err := h.ownLink()
	if err != nil {
		return err
	}
	h.closeTUN()
	if link == nil {
		return nil
	}
	h.writes.Add(1)
	if err := h.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", h.name, err)
	}
	return nil
}

// configure changes the WireGuard side of the device.
func (h *Host) configure(cfg wgtypes.Config) error {
	c, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("open WireGuard control: %w", err)
	}
	defer c.Close()
	h.writes.Add(1)
	if err := c.ConfigureDevice(h.name, cfg); err != nil {
		return fmt.Errorf("configure device %s: %w", h.name, err)
	}
	return nil
}

// changePeers changes all peers at once, or, if the kernel refuses that, one by
// one, so that what is wrong with one keeps no other from its tunnel.
func (h *Host) changePeers(p Plan) error {
	if len(p.Peers) == 0 {
		return nil
	}
	all := h.configure(p.Config())
	if all == nil || len(p.Peers) == 1 || gone(all) {
		return refusedStep(all)
	}
	var errs []error
	for _, pc := range p.Peers {
		if err := h.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{pc.config()}}); err != nil {
			errs = append(errs, refusedStep(fmt.Errorf("change peer %s %s: %w", pc.Name, pc.Key, err)))
		}
	}
	return errors.Join(errs...)
}

// address is a prefix as an address of the device. Duplicate address detection
// makes no sense without neighbours and would delay the address; an on-link
// route for its prefix would be none of ours.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNetOf(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	}
	return a
}

func (h *Host) addAddress(p netip.Prefix) error {
	link, err := h.ownLink()
	if err == nil && link == nil {
		err = unix.ENODEV
	}
	if err == nil {
		h.writes.Add(1)
		err = h.nl.AddrReplace(link, address(p))
	}
	if err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, h.name, err)
	}
	return nil
}

func (h *Host) deleteAddress(p netip.Prefix) error {
	link, err := h.ownLink()
	if err == nil && link == nil {
		return nil
	}
	if err == nil {
		h.writes.Add(1)
		err = h.nl.AddrDel(link, &netlink.Addr{IPNet: ipNetOf(p)})
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete address %s from %s: %w", p, h.name, err)
	}
	return nil
}

// addRoute adds a route, or replaces ours to the same destination. The kernel's
// "replace" would take anybody's, so it is used only where ours is known.
func (h *Host) addRoute(c RouteChange) error {
	if err := h.tryAddRoute(c); err != nil {
		return refusedStep(fmt.Errorf("add route %s: %w", c.Route.Destination, err))
	}
	return nil
}

func (h *Host) tryAddRoute(c RouteChange) error {
	link, err := h.nl.LinkByName(c.Route.Link)
	if err != nil {
		return err
	}
	r := &netlink.Route{
		Dst:       ipNetOf(c.Route.Destination),
		LinkIndex: link.Attrs().Index,
		Protocol:  RouteProtocol,
		Scope:     netlink.SCOPE_LINK,
		Table:     unix.RT_TABLE_MAIN,
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
		h.writes.Add(1)
		if err := h.nl.RouteAdd(r); !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := h.checkOwnRoute(c.Route.Destination); err != nil {
			return err
		}
	}
	h.writes.Add(1)
	return h.nl.RouteReplace(r)
}

// checkOwnRoute says whether the route that stands in the way of one to this
// destination is ours.
func (h *Host) checkOwnRoute(dst netip.Prefix) error {
	routes, err := h.ownRoutes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Table == unix.RT_TABLE_MAIN && destination(r) == dst && !isBackstop(r) {
			return nil
		}
	}
	return fmt.Errorf("a route that is not meshd's leads there (`ip route show %s`)", dst)
}

func (h *Host) deleteRoute(r Route) error {
	del := &netlink.Route{
		Dst:      ipNetOf(r.Destination),
		Protocol: RouteProtocol,
		Scope:    netlink.SCOPE_NOWHERE, // any
		Table:    unix.RT_TABLE_MAIN,
	}
	if r.Via.IsValid() {
		del.Gw = r.Via.AsSlice()
	}
	if r.Link != "" {
		link, err := h.linkByName(r.Link)
		if err != nil {
			return err
		}
		if link == nil {
			return nil // the route went with it
		}
		del.LinkIndex = link.Attrs().Index
	}
	return h.delRoute(del)
}

func (h *Host) delRoute(r *netlink.Route) error {
	h.writes.Add(1)
	if err := h.nl.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete route %s: %w", destination(*r), err)
	}
	return nil
}
