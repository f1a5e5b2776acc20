// SPDX-License-Identifier: Apache-2.0

package relaynft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/forward"
)

// dumpTries is how often a dump is tried that was interrupted by a change.
const dumpTries = 10

// retryInterrupted repeats a dump that the kernel marked as inconsistent because something changed
// meanwhile.
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

// readLinks returns this host's links.
func readLinks(nl *netlink.Handle) ([]forward.Link, error) {
	all, err := retryInterrupted(nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	merging, err := openFeatures()
	if err != nil {
		return nil, err
	}
	defer merging.Close()
	beneath := make(map[int][]int)
	for _, l := range all {
		a := l.Attrs()
		if a.MasterIndex != 0 {
			beneath[a.MasterIndex] = append(beneath[a.MasterIndex], a.Index)
		}
		// The parent of a veth is its other end.
		if a.ParentIndex != 0 && l.Type() != "veth" {
			beneath[a.Index] = append(beneath[a.Index], a.ParentIndex)
		}
	}
	out := make([]forward.Link, 0, len(all))
	for _, l := range all {
		a := l.Attrs()
		const without = unix.IFF_NOARP | unix.IFF_LOOPBACK | unix.IFF_POINTOPOINT
		out = append(out, forward.Link{
			Index: a.Index, Name: a.Name, MTU: a.MTU, Up: a.Flags&net.FlagUp != 0,
			Neighbors: a.EncapType == "ether" && a.RawFlags&without == 0,
			Merges:    merging.merges(a.Name), Beneath: beneath[a.Index],
		})
	}
	return out, nil
}

// readAddresses returns this host's addresses, each with the index of its link.
func readAddresses(nl *netlink.Handle) (map[netip.Addr]int, error) {
	all, err := retryInterrupted(func() ([]netlink.Addr, error) { return nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make(map[netip.Addr]int, len(all))
	for _, a := range all {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			out[addr.Unmap()] = a.LinkIndex
		}
	}
	return out, nil
}

// readHops asks the kernel for the route of each way that it may forward. Where there is none,
// there is no hop.
func readHops(nl *netlink.Handle, bound []path.Kept) map[forward.Way]forward.Hop {
	out := make(map[forward.Way]forward.Hop, len(bound))
	for _, b := range bound {
		w := forward.WayTo(b)
		if !forward.CanForward(b) {
			continue
		}
		routes, err := nl.RouteGetWithOptions(w.To.Addr().AsSlice(), &netlink.RouteGetOptions{SrcAddr: w.From.AsSlice()})
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST {
			continue
		}
		h := forward.Hop{Link: routes[0].LinkIndex, Via: w.To.Addr(), MTU: routes[0].MTU}
		if via, ok := netip.AddrFromSlice(routes[0].Gw); ok {
			h.Via = via.Unmap()
		} else if routes[0].Via != nil { // of the other family
			continue
		}
		out[w] = h
	}
	return out
}
