// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// holdings counts what a daemon has configured in the kernel. It reads the kernel and not
// the daemon's plan, which only has what the daemon itself finds.
type holdings struct {
	Peers  int // of WireGuard devices
	Routes int // of meshd's protocol
	Links  int // that are WireGuard's or VXLAN's
	Rules  int // in all tables of nftables, with the elements of named sets that stay
}

func holdingsOf(n *lab.Node) (h holdings, err error) {
	err = n.Do(func() error {
		for _, count := range []func(*holdings) error{countPeers, countRoutes, countLinks, countRules} {
			if err := count(&h); err != nil {
				return fmt.Errorf("count what the kernel has on %s: %w", n.Name, err)
			}
		}
		return nil
	})
	return h, err
}

func countPeers(h *holdings) error {
	c, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer c.Close()
	devices, err := c.Devices()
	for _, d := range devices {
		h.Peers += len(d.Peers)
	}
	return err
}

func countRoutes(h *holdings) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: netcfg.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	h.Routes = len(routes)
	return err
}

func countLinks(h *holdings) error {
	links, err := netlink.LinkList()
	for _, l := range links {
		if l.Type() == "wireguard" || l.Type() == "vxlan" {
			h.Links++
		}
	}
	return err
}

func countRules(h *holdings) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		sets, err := c.GetSets(t)
		if err != nil {
			return err
		}
		for _, s := range sets {
			if s.HasTimeout { // sessions of others that the kernel forwards: they end by themselves
				continue
			}
			elements, err := c.GetSetElements(s)
			if err != nil {
				return err
			}
			h.Rules += len(elements)
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		return err
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return err
		}
		h.Rules += len(rules)
	}
	return nil
}

// most is what a host needs at most in any mode: seven peers, three routes for each of
// them and two for each of the ranges, and a few more rules than there ever are.
var most = holdings{Peers: 7, Routes: 25, Links: 2, Rules: 260}

// enough returns an error if a host has more than the town needs.
func enough(n *lab.Node) error {
	h, err := holdingsOf(n)
	if err != nil {
		return err
	}
	if h.Peers > most.Peers || h.Routes > most.Routes || h.Links > most.Links || h.Rules > most.Rules {
		return fmt.Errorf("%s has more than it needs: got %+v, want at most %+v", n.Name, h, most)
	}
	return nil
}
