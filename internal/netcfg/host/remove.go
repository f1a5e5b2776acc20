// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Remove deletes everything that meshd owns from the host: routes, devices, firewall, and
// the CNI bridge if no pod uses it. What keeps packets of the mesh from leaving
// unencrypted is removed last. It returns descriptions of what it removed, even if some
// removals failed. A link that has the name of our device but is not ours remains. Kernel
// parameters remain as they are, because other programs may rely on them (k3s needs the
// same ones).
func (k *Kernel) Remove(ctx context.Context) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var removed []string
	var errs []error
	steps := []func(context.Context) ([]string, error){
		k.removeRoutes, k.removeVXLAN, k.removeDevice, k.removeAccepts, k.removeBridge, k.removePolicies, k.removeBackstops, k.removeFirewall,
	}
	if k.tunnel {
		steps = []func(context.Context) ([]string, error){k.removeRoutes, k.removeDevice}
	}
	for _, step := range steps {
		what, err := step(ctx)
		removed, errs = append(removed, what...), append(errs, err)
	}
	return removed, errors.Join(append(errs, ctx.Err())...)
}

// TakeDown sets our devices down, so that nothing more is sent with this node's keys and
// addresses. Backstop routes and firewall stay: nothing leaves in plain text instead.
func (k *Kernel) TakeDown() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, own := range []func() (netlink.Link, error){k.ownLink, k.ownVXLANLink} {
		link, err := own()
		if err == nil && link != nil {
			k.writes.Add(1)
			err = k.nl.LinkSetDown(link)
		}
		if err != nil && !errors.Is(err, ErrForeignDevice) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("set device down: %w", err))
		}
	}
	return errors.Join(errs...)
}

// ownVXLANLink returns our vxlan device as a link, or nil if there is none.
func (k *Kernel) ownVXLANLink() (netlink.Link, error) {
	link, err := k.ownVXLAN()
	if err != nil || link == nil {
		return nil, err
	}
	return link, nil
}

func (k *Kernel) removeRoutes(context.Context) ([]string, error) {
	return k.removeRoutesIf(func(r netlink.Route) bool { return !isBackstop(r) })
}

func (k *Kernel) removeBackstops(context.Context) ([]string, error) {
	return k.removeRoutesIf(isBackstop)
}

func (k *Kernel) removeRoutesIf(wanted func(netlink.Route) bool) ([]string, error) {
	routes, err := k.ownRoutes()
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, r := range routes {
		if !wanted(r) {
			continue
		}
		if err := k.delRoute(&r); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("route %s", destination(r)))
	}
	return removed, errors.Join(errs...)
}

func (k *Kernel) removeDevice(context.Context) ([]string, error) {
	link, err := k.ownLink()
	if errors.Is(err, ErrForeignDevice) || err == nil && link == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := k.deleteDevice(); err != nil {
		return nil, err
	}
	if link.Type() == "tuntap" {
		// A killed daemon leaves its control socket; a running one removes it itself.
		if err := os.Remove("/var/run/wireguard/" + k.name + ".sock"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove control socket of %s: %w", k.name, err)
		}
	}
	return []string{"device " + k.name}, nil
}

func (k *Kernel) removeFirewall(ctx context.Context) ([]string, error) {
	t, err := k.ownTable()
	if err != nil || t == nil {
		return nil, err
	}
	if err := k.deleteFirewall(ctx); err != nil {
		return nil, err
	}
	return []string{"nft table inet " + k.table}, nil
}

// RemoveBridge removes the CNI bridge if no pod uses it. The CNI plugin makes it anew.
func (k *Kernel) RemoveBridge(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := k.removeBridge(ctx)
	return err
}

// removeBridge removes the CNI bridge, which the CNI plugin created for the first pod,
// unless a link is still attached to it.
func (k *Kernel) removeBridge(context.Context) ([]string, error) {
	if k.bridge == "" {
		return nil, nil
	}
	bridge, err := k.linkByName(k.bridge)
	if err != nil || bridge == nil || bridge.Type() != "bridge" {
		return nil, err
	}
	links, err := k.podLinks()
	if err != nil || len(links) > 0 {
		return nil, err
	}
	k.writes.Add(1)
	if err := k.nl.LinkDel(bridge); err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("delete bridge %s: %w", k.bridge, err)
	}
	return []string{"bridge " + k.bridge}, nil
}

// RemoveLinks removes the devices of links to other clusters, but for those named, and returns the names
// of the others. Their routes and addresses go with them.
func RemoveLinks(but []string) (removed []string, err error) {
	list, err := retryInterrupted(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range list {
		name := l.Attrs().Name
		if l.Attrs().Alias != linkAlias || slices.Contains(but, name) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", name, err))
			continue
		}
		removed = append(removed, name)
	}
	return removed, errors.Join(errs...)
}
