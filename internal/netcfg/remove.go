// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Remove takes everything of ours from the host: routes, devices, firewall, and
// the CNI bridge if no pod is left on it. What keeps packets of the mesh from
// leaving in plain text goes last. It returns what it removed, in words,
// also when some of it could not be. A link that has our device's name and is
// not ours stays. Kernel parameters stay as they are, because others may have
// come to rely on them (k3s needs the same ones).
func (h *Host) Remove(ctx context.Context) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var removed []string
	var errs []error
	for _, step := range []func(context.Context) ([]string, error){
		h.removeRoutes, h.removeVXLAN, h.removeDevice, h.removeAccepts, h.removeBridge, h.removeBackstops, h.removeFirewall,
	} {
		what, err := step(ctx)
		removed, errs = append(removed, what...), append(errs, err)
	}
	return removed, errors.Join(append(errs, ctx.Err())...)
}

func (h *Host) removeRoutes(context.Context) ([]string, error) {
	return h.removeRoutesIf(func(r netlink.Route) bool { return !isBackstop(r) })
}

func (h *Host) removeBackstops(context.Context) ([]string, error) {
	return h.removeRoutesIf(isBackstop)
}

func (h *Host) removeRoutesIf(wanted func(netlink.Route) bool) ([]string, error) {
	routes, err := h.ownRoutes()
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, r := range routes {
		if !wanted(r) {
			continue
		}
		if err := h.delRoute(&r); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("route %s", destination(r)))
	}
	return removed, errors.Join(errs...)
}

func (h *Host) removeDevice(context.Context) ([]string, error) {
	link, err := h.ownLink()
	if errors.Is(err, ErrForeignDevice) || err == nil && link == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := h.deleteDevice(); err != nil {
		return nil, err
	}
	if link.Type() == "tuntap" {
		// A daemon that was killed left its control socket; one that runs removes its own.
		if err := os.Remove("/var/run/wireguard/" + h.name + ".sock"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove control socket of %s: %w", h.name, err)
		}
	}
	return []string{"device " + h.name}, nil
}

func (h *Host) removeFirewall(ctx context.Context) ([]string, error) {
	t, err := h.ownTable()
	if err != nil || t == nil {
		return nil, err
	}
	if err := h.deleteFirewall(ctx); err != nil {
		return nil, err
	}
	return []string{"nft table inet " + FirewallTable}, nil
}

// removeBridge removes the CNI bridge, which the CNI plugin made for the first
// pod, unless something is still plugged into it.
func (h *Host) removeBridge(context.Context) ([]string, error) {
	if h.bridge == "" {
		return nil, nil
	}
	bridge, err := h.linkByName(h.bridge)
	if err != nil || bridge == nil || bridge.Type() != "bridge" {
		return nil, err
	}
	links, err := retryInterrupted(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			return nil, nil
		}
	}
	h.writes.Add(1)
	if err := h.nl.LinkDel(bridge); err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("delete bridge %s: %w", h.bridge, err)
	}
	return []string{"bridge " + h.bridge}, nil
}
