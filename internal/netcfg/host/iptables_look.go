// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// Everybody's firewalls are large, and looked at often. So they are read again
// only when the kernel says that they are others: nftables has a number for each
// of its generations, and what ip_tables has is compared as it comes, see
// legacyTable. That costs two system calls and no process.

// filters is what was read last. It is no memory of what this Kernel did: it is
// what the kernel would answer again.
type filters struct {
	generation uint32
	nft        []filter.Table
	legacy     map[string]legacyRead // by family and table
}

type legacyRead struct {
	sum   [32]byte
	table filter.Table
}

// kubernetes begins the names of chains that say what a certain pod or Service
// may get. What they drop is meant to be dropped.
const kubernetes = "KUBE-"

// balancers begin the names of those of kube-proxy's chains that lead packets to a
// Service's pods. There are several for each Service, and how they choose a pod is
// nobody's business here.
var balancers = []string{"KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"}

// Filters reads the tables that filter packets on their way to this host or
// through it, or give them another destination, ours excepted.
func (k *Kernel) Filters(ctx context.Context) ([]filter.Table, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.observeFilters(ctx)
}

func (k *Kernel) observeFilters(ctx context.Context) ([]filter.Table, error) {
	generation, err := nftGeneration()
	if err != nil {
		return nil, err
	}
	if generation != k.filters.generation {
		tables, err := k.readFilters()
		if err != nil {
			return nil, err
		}
		k.filters.generation, k.filters.nft = generation, tables
	}
	legacy, err := k.observeLegacy(ctx)
	return slices.Concat(k.filters.nft, legacy), err
}

// nftGeneration asks for the number of the ruleset, which every transaction
// raises (nf_tables_api.c, nf_tables_fill_gen_info).
func nftGeneration() (uint32, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("open nftables netlink: %w", err)
	}
	defer c.Close()
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, sizeofNfgenmsg),
	})
	if err != nil {
		return 0, fmt.Errorf("ask for generation of nftables: %w", err)
	}
	for _, m := range replies {
		if len(m.Data) < sizeofNfgenmsg {
			continue
		}
		attrs, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("read generation of nftables: %w", err)
		}
		attrs.ByteOrder = binary.BigEndian
		for attrs.Next() {
			if attrs.Type() == unix.NFTA_GEN_ID {
				return attrs.Uint32(), attrs.Err()
			}
		}
	}
	return 0, errors.New("read generation of nftables: there is none in the answer")
}

// sizeofNfgenmsg is the length of struct nfgenmsg.
const sizeofNfgenmsg = 4

var filterFamilies = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// readFilters reads what nftables has: tables of nft, of firewalld, and of
// iptables where that is kept by nftables.
func (k *Kernel) readFilters() ([]filter.Table, error) {
	chains, err := k.nft.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	tables := map[nftables.Table][]*nftables.Chain{}
	for _, c := range chains {
		key := nftables.Table{Name: c.Table.Name, Family: c.Table.Family}
		ours := key.Family == nftables.TableFamilyINet && key.Name == netcfg.FirewallTable
		if filterFamilies[key.Family] != "" && !ours {
			tables[key] = append(tables[key], c)
		}
	}
	var out []filter.Table
	for _, key := range slices.SortedFunc(maps.Keys(tables), compareTables) {
		if !slices.ContainsFunc(tables[key], func(c *nftables.Chain) bool { return hookOf(c) != "" }) {
			continue
		}
		t, err := k.readFilter(&key, tables[key])
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func compareTables(a, b nftables.Table) int {
	return strings.Compare(filterFamilies[a.Family]+" "+a.Name, filterFamilies[b.Family]+" "+b.Name)
}

// filterHook names the hook of a chain that filters, of those that matter here.
func filterHook(c *nftables.Chain) string {
	switch {
	case c.Hooknum == nil || c.Type != nftables.ChainTypeFilter:
		return ""
	case *c.Hooknum == *nftables.ChainHookInput:
		return "input"
	case *c.Hooknum == *nftables.ChainHookForward:
		return "forward"
	}
	return ""
}

// natHook names the hook of a chain that may replace destinations.
func natHook(c *nftables.Chain) string {
	switch {
	case c.Hooknum == nil || c.Type != nftables.ChainTypeNAT:
		return ""
	case *c.Hooknum == *nftables.ChainHookPrerouting:
		return "prerouting"
	case *c.Hooknum == *nftables.ChainHookOutput:
		return "output"
	}
	return ""
}

func hookOf(c *nftables.Chain) string { return filterHook(c) + natHook(c) }

func (k *Kernel) readFilter(t *nftables.Table, chains []*nftables.Chain) (filter.Table, error) {
	out := filter.Table{Backend: filter.NFT, Family: filterFamilies[t.Family], Name: t.Name, Chains: map[string]filter.Chain{}}
	switch isNAT := slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return natHook(c) != "" && isXT(c) }); {
	case t.Name == "nat" && isNAT:
		out.Backend = filter.XTNFT // no rules of ours go there
	case t.Name == "filter" && slices.ContainsFunc(chains, isXT):
		out.Backend = filter.XTNFT
		out.Program = installed(filter.XTNFT.Program(out.Family))
	}
	d, err := k.decoder(t)
	if err != nil {
		return out, err
	}
	for _, c := range chains {
		chain := filter.Chain{Hook: hookOf(c), Drops: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop}
		switch balances := slices.ContainsFunc(balancers, func(p string) bool { return strings.HasPrefix(c.Name, p) }); {
		case balances:
			chain.Rules = []filter.Rule{{Action: filter.Translate}}
		case !strings.HasPrefix(c.Name, kubernetes) || t.Name == "nat":
			rules, err := k.nft.GetRules(t, c)
			if err != nil {
				return out, fmt.Errorf("list rules of nft chain %s %s: %w", t.Name, c.Name, err)
			}
			for _, r := range rules {
				chain.Rules = append(chain.Rules, d.decode(r.Exprs)...)
			}
		}
		out.Chains[c.Name] = chain
	}
	return out, nil
}

// isXT says whether a chain has a name that iptables gives and nobody else.
func isXT(c *nftables.Chain) bool {
	return hookOf(c) != "" && slices.Contains([]string{"INPUT", "FORWARD", "PREROUTING", "OUTPUT"}, c.Name)
}

// installed returns the program if there is one of that name.
func installed(program string) string {
	if _, err := exec.LookPath(program); err != nil {
		return ""
	}
	return program
}

// decoder has what rules refer to.
func (k *Kernel) decoder(t *nftables.Table) (decoder, error) {
	d := decoder{sets: map[string][]nftables.SetElement{}, links: map[uint32]string{}}
	links, err := retryInterrupted(k.nl.LinkList)
	if err != nil {
		return d, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		d.links[uint32(l.Attrs().Index)] = l.Attrs().Name
	}
	sets, err := k.nft.GetSets(t)
	if err != nil {
		return d, fmt.Errorf("list sets of nft table %s: %w", t.Name, err)
	}
	for _, s := range sets {
		if d.sets[s.Name], err = k.nft.GetSetElements(s); err != nil {
			return d, fmt.Errorf("list elements of nft set %s: %w", s.Name, err)
		}
	}
	return d, nil
}
