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

	"github.com/meshd/meshd/internal/netcfg/filter"
)

// The firewalls of other programs are large and are checked often. So they are read again
// only when the kernel indicates a change: nftables numbers its generations, and the
// binary form of an ip_tables table is compared with the previous one, see legacyTable.
// That costs two system calls and no process.

// filters caches what was read last. It holds only what the kernel would return again,
// not what this Kernel has done.
type filters struct {
	generation uint32
	nft        []filter.Table
	legacy     map[string]legacyRead // by family and table
}

type legacyRead struct {
	sum   [32]byte
	table filter.Table
}

// kubernetesPrefix is the prefix of the chains that decide what a certain pod or Service
// may receive. What they drop is meant to be dropped.
const kubernetesPrefix = "KUBE-"

// balancerPrefixes are the prefixes of those chains of kube-proxy that redirect packets
// to a Service's pods. There are several for each Service, and it doesn't matter here how
// they choose a pod.
var balancerPrefixes = []string{"KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"}

// Filters reads the tables that filter packets to this host or through it, or that
// translate their destination. Our own table is left out.
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

// nftGeneration returns the number of the ruleset's generation, which every transaction
// increases (nf_tables_api.c, nf_tables_fill_gen_info).
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
	return 0, errors.New("read generation of nftables: the reply has none")
}

// sizeofNfgenmsg is the length of struct nfgenmsg.
const sizeofNfgenmsg = 4

var filterFamilies = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// readFilters reads the tables of nftables: those of nft and firewalld, and those of
// iptables that are stored in nftables.
func (k *Kernel) readFilters() ([]filter.Table, error) {
	chains, err := k.nft.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	tables := map[nftables.Table][]*nftables.Chain{}
	for _, c := range chains {
		key := nftables.Table{Name: c.Table.Name, Family: c.Table.Family}
		ours := key.Family == nftables.TableFamilyINet && key.Name == k.table
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

// filterHook returns the hook of a filter chain, if it is input or forward; "" otherwise.
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

// natHook returns the hook of a chain that may translate destinations; "" for other
// chains.
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
		out.Backend = filter.XTNFT // Program stays empty: our rules are never added there
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
		switch balances := slices.ContainsFunc(balancerPrefixes, func(p string) bool { return strings.HasPrefix(c.Name, p) }); {
		case balances:
			chain.Rules = []filter.Rule{{Action: filter.Translate}}
		case !strings.HasPrefix(c.Name, kubernetesPrefix) || t.Name == "nat":
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

// isXT reports whether a chain has one of the names that only iptables gives.
func isXT(c *nftables.Chain) bool {
	return hookOf(c) != "" && slices.Contains([]string{"INPUT", "FORWARD", "PREROUTING", "OUTPUT"}, c.Name)
}

// installed returns the program if it is installed, and "" otherwise.
func installed(program string) string {
	if _, err := exec.LookPath(program); err != nil {
		return ""
	}
	return program
}

// decoder returns a decoder for the table, with the sets and links that its rules refer
// to.
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
