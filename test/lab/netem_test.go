// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package lab_test

import (
	"testing"

	"github.com/meshd/meshd/test/lab"
)

func TestImpair(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.NAT), newHost(ctx, t, l, "b", lab.NAT)
	if err := b.Impair(ctx, "loss 100%"); err != nil {
		t.Fatal(err)
	}
	if err := answers(ctx, a, b.Public(), 1); err == nil {
		t.Error("a host answers although it loses all packets")
	}
	if err := b.Impair(ctx, "delay 1ms"); err != nil {
		t.Fatal(err)
	}
	if err := answers(ctx, a, b.Public(), 20); err != nil {
		t.Error(err)
	}
}

func TestImpairSite(t *testing.T) {
	ctx, l := newLab(t)
	site, err := l.Site(ctx, "site", lab.SiteOptions{Underlay: lab.NAT})
	if err != nil {
		t.Fatal(err)
	}
	var hosts []*lab.Host
	for _, name := range []string{"a", "b"} {
		h, err := site.Host(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	outside := newHost(ctx, t, l, "outside", lab.NAT)
	if err := site.Impair(ctx, "loss 100%"); err != nil {
		t.Fatal(err)
	}
	if err := answers(ctx, outside, hosts[0].Public(), 1); err == nil {
		t.Error("a host answers although its site loses all packets")
	}
	if err := answers(ctx, hosts[0], hosts[1].Address(), 20); err != nil {
		t.Error(err)
	}
	if err := site.Impair(ctx, "delay 1ms"); err != nil {
		t.Fatal(err)
	}
	if err := answers(ctx, outside, hosts[0].Public(), 20); err != nil {
		t.Error(err)
	}
}
