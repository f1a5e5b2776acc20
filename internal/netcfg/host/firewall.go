// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"sigs.k8s.io/knftables"

	"github.com/meshd/meshd/internal/netcfg"
)

// The firewall's rules are written with nft(8), in whose language they are. It is read by
// netlink, because reading must be cheap: no process is started just to find that nothing
// has changed, and nft's output, which differs between versions, need not be parsed. The
// elements of sets are written by netlink, too, when nothing else differs.

// firewallWriter opens nft on first use.
type firewallWriter struct{ nft knftables.Interface }

func (w *firewallWriter) open(table string) (knftables.Interface, error) {
	if w.nft == nil {
		nft, err := knftables.New(knftables.InetFamily, table)
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("nft is not installed (`apt install nftables`): %w", err)
		}
		if err != nil {
			return nil, err
		}
		w.nft = nft
	}
	return w.nft, nil
}

// applyFirewall replaces the elements of sets, if there are any, and else our table. It does that, too, if
// the kernel refuses the elements.
func (k *Kernel) applyFirewall(ctx context.Context, f netcfg.Firewall, sets []netcfg.Set) error {
	if len(sets) > 0 {
		err := k.replaceElements(sets)
		if err == nil {
			return nil
		}
		k.log.Debug("the nft table is replaced", "err", err)
	}
	return k.replaceFirewall(ctx, f)
}

// replaceFirewall replaces our table by f in one transaction, so that no packet meets a
// partial change.
func (k *Kernel) replaceFirewall(ctx context.Context, f netcfg.Firewall) error {
	nft, err := k.firewall.open(k.table)
	if err != nil {
		return fmt.Errorf("replace table %s: %w", k.table, err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{}) // so that deleting it succeeds
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	for _, s := range f.Sets {
		tx.Add(&knftables.Set{Name: s.Name, Type: s.Type, Flags: []knftables.SetFlag{knftables.IntervalFlag}})
		for _, e := range s.Elements {
			tx.Add(&knftables.Element{Set: s.Name, Key: []string{e.String()}})
		}
	}
	for _, c := range f.Chains {
		tx.Add(&knftables.Chain{
			Name:     c.Name,
			Type:     knftables.PtrTo(knftables.BaseChainType(c.Type)),
			Hook:     knftables.PtrTo(knftables.BaseChainHook(c.Hook)),
			Priority: knftables.PtrTo(knftables.BaseChainPriority(strconv.Itoa(c.Priority))),
		})
		for _, r := range c.Rules {
			tx.Add(&knftables.Rule{Chain: c.Name, Rule: r.Text, Comment: knftables.PtrTo(r.Hash)})
		}
	}
	k.writes.Add(1)
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("replace table %s: %w", k.table, err)
	}
	return nil
}

// maxElements is how many elements of a set one message takes: it may be 64 KiB long.
const maxElements = 512

// replaceElements replaces the elements of sets in one transaction. It starts no process, as each node that
// comes, goes or moves changes some set.
func (k *Kernel) replaceElements(sets []netcfg.Set) error {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: k.table}
	for _, s := range sets {
		set := &nftables.Set{Table: table, Name: s.Name}
		k.nft.FlushSet(set)
		for some := range slices.Chunk(elements(s.Elements), maxElements) {
			if err := k.nft.SetAddElements(set, some); err != nil {
				return fmt.Errorf("replace elements of nft set %s: %w", s.Name, err)
			}
		}
	}
	k.writes.Add(1)
	if err := k.nft.Flush(); err != nil {
		return fmt.Errorf("replace elements of nft sets: %w", err)
	}
	return nil
}

// elements returns the elements of an interval set for disjoint prefixes. Each has its end, although the
// next one may begin there: newer kernels would say that they overlap.
func elements(disjoint []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range disjoint {
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if behind := after(p); behind.IsValid() {
			out = append(out, nftables.SetElement{Key: behind.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// deleteFirewall deletes our table if there is one.
func (k *Kernel) deleteFirewall(ctx context.Context) error {
	t, err := k.ownTable()
	if err != nil || t == nil {
		return err
	}
	nft, err := k.firewall.open(k.table)
	if err != nil {
		return fmt.Errorf("delete table %s: %w", k.table, err)
	}
	tx := nft.NewTransaction()
	tx.Delete(&knftables.Table{})
	k.writes.Add(1)
	if err := nft.Run(ctx, tx); err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("delete table %s: %w", k.table, err)
	}
	return nil
}

// ownTable returns our table, or nil if there is none.
func (k *Kernel) ownTable() (*nftables.Table, error) {
	tables, err := k.nft.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nft tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == k.table {
			return t, nil
		}
	}
	return nil, nil
}

// observeFirewall reads our table. It reports a table that someone has disabled (flags
// dormant) as missing.
func (k *Kernel) observeFirewall() (netcfg.Firewall, error) {
	t, err := k.ownTable()
	if err != nil || t == nil || t.Flags != 0 {
		return netcfg.Firewall{}, err
	}
	var f netcfg.Firewall
	if f.Sets, err = k.observeSets(t); err != nil {
		return netcfg.Firewall{}, err
	}
	if f.Chains, err = k.observeChains(t); err != nil {
		return netcfg.Firewall{}, err
	}
	return f, nil
}

func (k *Kernel) observeSets(t *nftables.Table) ([]netcfg.Set, error) {
	sets, err := k.nft.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("list nft sets: %w", err)
	}
	var out []netcfg.Set
	for _, s := range sets {
		if s.Anonymous {
			continue // part of a rule
		}
		elements, err := k.nft.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("list elements of nft set %s: %w", s.Name, err)
		}
		out = append(out, netcfg.Set{Name: s.Name, Type: s.KeyType.Name, Elements: prefixes(elements)})
	}
	slices.SortFunc(out, func(a, b netcfg.Set) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (k *Kernel) observeChains(t *nftables.Table) ([]netcfg.Chain, error) {
	chains, err := k.nft.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	var out []netcfg.Chain
	for _, c := range chains {
		if c.Table.Name != t.Name {
			continue
		}
		rules, err := k.nft.GetRules(t, c)
		if err != nil {
			return nil, fmt.Errorf("list rules of nft chain %s: %w", c.Name, err)
		}
		chain := toChain(c)
		for _, r := range rules {
			// A rule without a comment isn't ours. Its empty hash differs from every
			// desired one.
			hash, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			chain.Rules = append(chain.Rules, netcfg.Rule{Hash: hash})
		}
		out = append(out, chain)
	}
	slices.SortFunc(out, func(a, b netcfg.Chain) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// hooks are nft's names for the hooks of the inet family, by the kernel's number (enum
// nf_inet_hooks).
var hooks = []string{"prerouting", "input", "forward", "output", "postrouting"}

// toChain converts a chain. A chain that can't be ours, because it has no hook or drops
// by policy, gets no type, so that it differs from every desired one.
func toChain(c *nftables.Chain) netcfg.Chain {
	out := netcfg.Chain{Name: c.Name}
	if c.Hooknum == nil || c.Priority == nil || int(*c.Hooknum) >= len(hooks) ||
		c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
		return out
	}
	out.Type, out.Hook, out.Priority = string(c.Type), hooks[*c.Hooknum], int(*c.Priority)
	return out
}

// prefixes converts the elements of an interval set to prefixes. The kernel stores an
// interval as its first address and, marked as an end, the first address after it. The
// end is missing if the next interval starts there, and for an interval up to the highest
// address.
func prefixes(elements []nftables.SetElement) []netip.Prefix {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	var out []netip.Prefix
	for i, e := range elements {
		first, ok := netip.AddrFromSlice(e.Key)
		if e.IntervalEnd || !ok {
			continue
		}
		var behind netip.Addr // invalid after the highest address
		for _, next := range elements[i+1:] {
			if !bytes.Equal(next.Key, e.Key) {
				behind, _ = netip.AddrFromSlice(next.Key)
				break
			}
		}
		out = append(out, prefixesBetween(first, behind)...)
	}
	return out
}

// prefixesBetween returns the fewest prefixes that cover the addresses from first up to,
// but not including, behind.
func prefixesBetween(first, behind netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for first.IsValid() && (!behind.IsValid() || first.Less(behind)) {
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(first, p.Bits()-1)
			if wider.Masked().Addr() != first || behind.IsValid() && !after(wider).IsValid() ||
				behind.IsValid() && behind.Less(after(wider)) {
				break
			}
			p = wider
		}
		out = append(out, p)
		first = after(p)
	}
	return out
}

// after returns the first address after a prefix, or the zero Addr after the highest
// address.
func after(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last.Next()
}
