// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/meshd/meshd/internal/check/filter"
	"github.com/meshd/meshd/internal/netcfg"
)

// lookFilters reads all tables that filter packets on their way to this host or
// through it, ours excepted. /proc/net is the network namespace of the process,
// and a thread may be in another one.
func (f *Facts) lookFilters(ctx context.Context) error {
	errs := []error{f.lookNFT(ctx)}
	for _, x := range []struct{ family, names, program string }{
		{"ip", "/proc/thread-self/net/ip_tables_names", "iptables-legacy"},
		{"ip6", "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"},
	} {
		// Only a table that is there is asked for: to ask would make it.
		names, err := os.ReadFile(x.names)
		if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
			continue
		}
		text, err := list(ctx, x.program)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f.Filters = append(f.Filters, filter.Parse(filter.Legacy, x.family, text))
	}
	return errors.Join(errs...)
}

// list has iptables print the table filter.
func list(ctx context.Context, program string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "-S").Output()
	if err != nil {
		return "", fmt.Errorf("run %s -S: %w", program, err)
	}
	return string(out), nil
}

var nftFamilies = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

func (f *Facts) lookNFT(ctx context.Context) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables netlink: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list nft chains: %w", err)
	}
	tables := map[nftables.Table][]*nftables.Chain{}
	var order []nftables.Table
	for _, c := range chains {
		key := nftables.Table{Name: c.Table.Name, Family: c.Table.Family}
		if nftFamilies[key.Family] == "" || key.Family == nftables.TableFamilyINet && key.Name == netcfg.FirewallTable {
			continue
		}
		if tables[key] == nil {
			order = append(order, key)
		}
		tables[key] = append(tables[key], c)
	}
	for _, key := range order {
		if !slices.ContainsFunc(tables[key], func(c *nftables.Chain) bool { return hook(c) != "" }) {
			continue
		}
		table, err := f.readTable(ctx, conn, &key, tables[key])
		if err != nil {
			return err
		}
		f.Filters = append(f.Filters, table)
	}
	return nil
}

// hook names the hook of a chain that filters, of those that matter here.
func hook(c *nftables.Chain) string {
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

// readTable reads a table's rules. One of iptables-nft is better read with
// iptables, whose extensions are no more than a name to nftables.
func (f *Facts) readTable(ctx context.Context, conn *nftables.Conn, t *nftables.Table, chains []*nftables.Chain) (filter.Table, error) {
	out := filter.Table{Backend: filter.NFT, Family: nftFamilies[t.Family], Name: t.Name, Chains: map[string]filter.Chain{}}
	program := map[string]string{"ip": "iptables-nft", "ip6": "ip6tables-nft"}[out.Family]
	if t.Name == "filter" && program != "" && slices.ContainsFunc(chains, isXT) {
		if text, err := list(ctx, program); err == nil {
			return filter.Parse(filter.XTNFT, out.Family, text), nil
		}
		out.Backend = filter.XTNFT
	}
	d, err := f.decoder(conn, t)
	if err != nil {
		return out, err
	}
	for _, c := range chains {
		rules, err := conn.GetRules(t, c)
		if err != nil {
			return out, fmt.Errorf("list rules of nft chain %s %s: %w", t.Name, c.Name, err)
		}
		chain := filter.Chain{Hook: hook(c), Drops: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop}
		for _, r := range rules {
			chain.Rules = append(chain.Rules, d.Decode(r.Exprs)...)
		}
		out.Chains[c.Name] = chain
	}
	return out, nil
}

// isXT says whether a chain has a name that iptables gives and nobody else.
func isXT(c *nftables.Chain) bool { return c.Name == "INPUT" || c.Name == "FORWARD" }

func (f *Facts) decoder(conn *nftables.Conn, t *nftables.Table) (filter.Decoder, error) {
	d := filter.Decoder{Sets: map[string][]nftables.SetElement{}, Links: map[uint32]string{}}
	for _, l := range f.Links {
		d.Links[uint32(l.index)] = l.Name
	}
	sets, err := conn.GetSets(t)
	if err != nil {
		return d, fmt.Errorf("list sets of nft table %s: %w", t.Name, err)
	}
	for _, s := range sets {
		if d.Sets[s.Name], err = conn.GetSetElements(s); err != nil {
			return d, fmt.Errorf("list elements of nft set %s: %w", s.Name, err)
		}
	}
	return d, nil
}
