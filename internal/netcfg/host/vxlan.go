// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
)

// ownVXLAN returns the link of our VXLAN device, or nil if there is none. It is
// recognized by its alias. A device without alias that was never up is taken for one that
// a killed daemon had created but not yet marked.
func (k *Kernel) ownVXLAN() (*netlink.Vxlan, error) {
	name := netcfg.VXLANName(k.name)
	link, err := k.linkByName(name)
	if err != nil || link == nil {
		return nil, err
	}
	vx, ok := link.(*netlink.Vxlan)
	unmarked := ok && vx.Alias == "" && vx.VxlanId == netcfg.VXLANID && vx.Port == netcfg.VXLANPort && vx.Attrs().Flags&net.FlagUp == 0
	if ok && vx.Alias == deviceAlias || unmarked {
		k.vxlanIndex.Store(uint32(vx.Index))
		return vx, nil
	}
	return nil, fmt.Errorf("use link %s of kind %s: %w", name, link.Type(), ErrForeignDevice)
}

// observeVXLAN reads the VXLAN device and its entries. If another program's device has
// our name, it reports none: that device matters only to a plan that creates ours.
func (k *Kernel) observeVXLAN() (*netcfg.VXLAN, []netcfg.FDBEntry, []netcfg.NeighborEntry, error) {
	link, err := k.ownVXLAN()
	if errors.Is(err, ErrForeignDevice) || err == nil && link == nil {
		return nil, nil, nil, nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	local, _ := netip.AddrFromSlice(link.SrcAddr)
	vx := &netcfg.VXLAN{
		Name: link.Name, ID: link.VxlanId, Port: link.Port, Local: local.Unmap(), Learning: link.Learning,
		MTU: link.MTU, Up: link.Flags&net.FlagUp != 0,
	}
	copy(vx.MAC[:], link.HardwareAddr)
	forwarding, err := k.observeForwarding(link)
	if err != nil {
		return nil, nil, nil, err
	}
	neighbors, err := k.observeNeighbors(link)
	return vx, forwarding, neighbors, err
}

func (k *Kernel) observeForwarding(link netlink.Link) ([]netcfg.FDBEntry, error) {
	list, err := k.permanentEntries(link, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries of %s: %w", link.Attrs().Name, err)
	}
	var out []netcfg.FDBEntry
	for _, n := range list {
		to, _ := netip.AddrFromSlice(n.IP)
		e := netcfg.FDBEntry{To: to.Unmap()}
		copy(e.MAC[:], n.HardwareAddr)
		out = append(out, e)
	}
	slices.SortFunc(out, netcfg.FDBEntry.Compare)
	return out, nil
}

func (k *Kernel) observeNeighbors(link netlink.Link) ([]netcfg.NeighborEntry, error) {
	var out []netcfg.NeighborEntry
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := k.permanentEntries(link, family)
		if err != nil {
			return nil, fmt.Errorf("list neighbor entries of %s: %w", link.Attrs().Name, err)
		}
		for _, n := range list {
			addr, _ := netip.AddrFromSlice(n.IP)
			e := netcfg.NeighborEntry{Addr: addr.Unmap()}
			copy(e.MAC[:], n.HardwareAddr)
			out = append(out, e)
		}
	}
	slices.SortFunc(out, netcfg.NeighborEntry.Compare)
	return out, nil
}

// permanentEntries lists the entries that were written by a program. The kernel creates
// others, which come and go.
func (k *Kernel) permanentEntries(link netlink.Link, family int) ([]netlink.Neigh, error) {
	list, err := retryInterrupted(func() ([]netlink.Neigh, error) { return k.nl.NeighList(link.Attrs().Index, family) })
	return slices.DeleteFunc(list, func(n netlink.Neigh) bool { return n.State&netlink.NUD_PERMANENT == 0 }), err
}

// applyVXLAN creates the VXLAN device or changes it.
func (k *Kernel) applyVXLAN(c netcfg.VXLANChange) error {
	if c.Replace {
		if err := k.deleteVXLAN(); err != nil {
			return err
		}
	}
	link, err := k.ensureVXLAN(c.VXLAN)
	if err != nil {
		return err
	}
	if c.SetMTU {
		k.writes.Add(1)
		if err := k.nl.LinkSetMTU(link, c.VXLAN.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", c.VXLAN.Name, c.VXLAN.MTU, err)
		}
	}
	if c.SetUp {
		k.writes.Add(1)
		err := k.nl.LinkSetUp(link)
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("set %s up: another program uses UDP port %d, which VXLAN in a location needs: %w", c.VXLAN.Name, c.VXLAN.Port, err)
		}
		if err != nil {
			return fmt.Errorf("set %s up: %w", c.VXLAN.Name, err)
		}
	}
	return nil
}

// ensureVXLAN returns the link of our VXLAN device, after creating and marking it if
// necessary.
func (k *Kernel) ensureVXLAN(v netcfg.VXLAN) (netlink.Link, error) {
	link, err := k.ownVXLAN()
	if err != nil {
		return nil, err
	}
	if link == nil {
		if link, err = k.createVXLAN(v); err != nil {
			return nil, err
		}
	}
	if link.Alias != deviceAlias {
		k.writes.Add(1)
		if err := k.nl.LinkSetAlias(link, deviceAlias); err != nil {
			return nil, fmt.Errorf("set alias of %s: %w", v.Name, err)
		}
	}
	return link, nil
}

func (k *Kernel) createVXLAN(v netcfg.VXLAN) (*netlink.Vxlan, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.Name, v.MTU, v.MAC[:]
	k.writes.Add(1)
	err := k.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: v.ID, Port: v.Port, SrcAddr: v.Local.AsSlice()})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP): // what rtnetlink returns for an unknown kind of link
		return nil, fmt.Errorf("create device %s: this kernel has no VXLAN (`modprobe vxlan`); `cluster.encapsulation: never` needs none: %w", v.Name, err)
	case err != nil:
		return nil, fmt.Errorf("create device %s: %w", v.Name, err)
	}
	link, err := k.ownVXLAN()
	if err == nil && link == nil {
		err = fmt.Errorf("create device %s: it is missing afterwards", v.Name)
	}
	return link, err
}

// deleteVXLAN deletes our VXLAN device if there is one.
func (k *Kernel) deleteVXLAN() error {
	link, err := k.ownVXLAN()
	if err != nil || link == nil {
		return err
	}
	k.writes.Add(1)
	if err := k.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", link.Name, err)
	}
	return nil
}

func (k *Kernel) removeVXLAN(context.Context) ([]string, error) {
	link, err := k.ownVXLAN()
	if errors.Is(err, ErrForeignDevice) || err == nil && link == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []string{"device " + link.Name}, k.deleteVXLAN()
}

// addEntries writes forwarding and neighbor entries. They replace the previous entries of
// their MACs and addresses.
func (k *Kernel) addEntries(forwarding []netcfg.FDBEntry, neighbors []netcfg.NeighborEntry) error {
	if len(forwarding) == 0 && len(neighbors) == 0 {
		return nil
	}
	link, err := k.ownVXLAN()
	if err == nil && link == nil {
		err = fmt.Errorf("add entries to %s: %w", netcfg.VXLANName(k.name), unix.ENODEV)
	}
	if err != nil {
		return err
	}
	return k.eachEntry(toEntries(link, forwarding, neighbors), "add", k.nl.NeighSet)
}

// deleteEntries deletes forwarding and neighbor entries.
func (k *Kernel) deleteEntries(forwarding []netcfg.FDBEntry, neighbors []netcfg.NeighborEntry) error {
	if len(forwarding) == 0 && len(neighbors) == 0 {
		return nil
	}
	link, err := k.ownVXLAN()
	if err != nil || link == nil {
		return err
	}
	return k.eachEntry(toEntries(link, forwarding, neighbors), "delete", func(n *netlink.Neigh) error {
		if err := k.nl.NeighDel(n); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	})
}

// eachEntry calls do for each entry. verb describes do in errors.
func (k *Kernel) eachEntry(entries []netlink.Neigh, verb string, do func(*netlink.Neigh) error) error {
	var errs []error
	for _, n := range entries {
		k.writes.Add(1)
		if err := do(&n); err != nil {
			errs = append(errs, refusedStep(fmt.Errorf("%s entry %s to %s of %s: %w", verb, n.IP, n.HardwareAddr, netcfg.VXLANName(k.name), err)))
		}
	}
	return errors.Join(errs...)
}

// toEntries converts entries to the form that netlink expects.
func toEntries(link netlink.Link, forwarding []netcfg.FDBEntry, neighbors []netcfg.NeighborEntry) []netlink.Neigh {
	var out []netlink.Neigh
	index := link.Attrs().Index
	for _, e := range forwarding {
		out = append(out, netlink.Neigh{
			LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
			IP: e.To.AsSlice(), HardwareAddr: e.MAC[:],
		})
	}
	for _, e := range neighbors {
		out = append(out, netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: e.Addr.AsSlice(), HardwareAddr: e.MAC[:]})
	}
	return out
}
