// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
)

// observePolicies reads the rules of policy routing with our protocol.
func (k *Kernel) observePolicies() ([]netcfg.Policy, error) {
	var out []netcfg.Policy
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := retryInterrupted(func() ([]netlink.Rule, error) { return k.nl.RuleList(family) })
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6, or without policy routing
		}
		if err != nil {
			return nil, fmt.Errorf("list rules of policy routing: %w", err)
		}
		for _, r := range list {
			if r.Protocol != uint8(k.protocol) {
				continue
			}
			p := netcfg.Policy{IPv6: family == netlink.FAMILY_V6, Priority: r.Priority, Table: r.Table, NoDefault: r.SuppressPrefixlen == 0}
			if r.Invert {
				p.NotMark = r.Mark
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netcfg.Policy.Compare)
	return out, nil
}

// ruleOf converts a policy to a rule of the kernel.
func (k *Kernel) ruleOf(p netcfg.Policy) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table, r.Protocol = netlink.FAMILY_V4, p.Priority, p.Table, uint8(k.protocol)
	if p.IPv6 {
		r.Family = netlink.FAMILY_V6
	}
	if p.NotMark != 0 {
		r.Mark, r.Invert = p.NotMark, true
	}
	if p.NoDefault {
		r.SuppressPrefixlen = 0
	}
	return r
}

func (k *Kernel) addPolicy(p netcfg.Policy) error {
	k.writes.Add(1)
	err := k.nl.RuleAdd(k.ruleOf(p))
	if p.IPv6 && errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // there is nothing to route
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add %s: %w", p, err)
	}
	return nil
}

func (k *Kernel) deletePolicy(p netcfg.Policy) error {
	k.writes.Add(1)
	if err := k.nl.RuleDel(k.ruleOf(p)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete %s: %w", p, err)
	}
	return nil
}

func (k *Kernel) removePolicies(context.Context) ([]string, error) {
	policies, err := k.observePolicies()
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, p := range policies {
		if err := k.deletePolicy(p); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, p.String())
	}
	return removed, errors.Join(errs...)
}
