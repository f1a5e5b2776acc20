// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// mappingHome is a home whose router changes ports, and maps some when it is asked.
func mappingHome(by lab.Maps) uplink {
	u := homeOf(strings.ToLower(string(by)), lab.Router{Mapping: lab.PortDependent, Maps: by})
	u.open = true
	return u
}

// TestPortMapping has nodes at homes whose routers change ports and speak one protocol each:
// Debian's miniupnpd. Strangers reach the nodes there, and each two are connected directly, which
// is so again after the routers have lost their mappings. These stay when a daemon stops, and go
// with meshd down, and when a file says so.
func TestPortMapping(t *testing.T) {
	t.Parallel()
	uplinks := []uplink{publicUplink, mappingHome(lab.PCP), mappingHome(lab.NATPMP), mappingHome(lab.UPnP)}
	m := newUplinks(t, uplinks...)
	homes := m.nodes[1:]
	mapped := func() error {
		errs := []error{m.mappingsAt(1, homes)}
		for i, n := range homes {
			s := m.status(n).Node
			want := control.PortMapping{
				Protocol: string(uplinks[i+1].site.Router.Maps), Port: 51820, External: netip.AddrPortFrom(n.Public(), 51820), Public: true,
			}
			if len(s.PortMappings) == 1 {
				want.Router = s.PortMappings[0].Router
			}
			if len(s.PortMappings) != 1 || s.PortMappings[0] != want || !s.Open {
				errs = append(errs, fmt.Errorf("%s: got %+v, open: %v; want %+v, and open", n.Name, s.PortMappings, s.Open, want))
			}
		}
		return errors.Join(errs...)
	}
	m.eventually(settleLimit, mapped)
	m.meetAsTheyCan(settleLimit, uplinks)
	restarted := time.Now()
	for i, n := range homes {
		m.must(n.RebootRouter(m.ctx))
		m.eventually(settleLimit, func() error { return m.mappingsAt(1, homes[i:i+1]) })
		t.Logf("%s: mapped again within %v", n.Name, time.Since(restarted).Round(100*time.Millisecond))
		restarted = time.Now()
	}
	m.eventually(settleLimit, mapped)
	m.meetAsTheyCan(settleLimit, uplinks)

	off := homes[2]
	file := m.run(off, "cat", lab.ConfigPath)
	m.must(off.Configure(strings.Replace(file, "node:\n", "node:\n  port-mapping: off\n", 1), m.secret))
	m.must(off.Reload())
	m.eventually(settleLimit, func() error { return m.mappingsAt(0, homes[2:]) })
	m.await(settleLimit, "has no mapping", func(s control.Status) bool { return len(s.Node.PortMappings) == 0 }, off)

	homes = homes[:2]
	for _, n := range homes {
		m.must(n.Stop())
	}
	m.must(m.mappingsAt(1, homes))
	for _, n := range homes {
		_, err := n.Meshd(m.ctx, "down")
		m.must(err)
	}
	m.must(m.mappingsAt(0, homes))
}

// mappingsAt returns an error unless the router of each node has this many mappings.
func (m *testbed) mappingsAt(want int, nodes []*lab.Node) error {
	var errs []error
	for _, n := range nodes {
		if got, err := n.PortMappings(m.ctx); err != nil || got != want {
			errs = append(errs, fmt.Errorf("router of %s: got %d mappings, %v, want %d", n.Name, got, err, want))
		}
	}
	return errors.Join(errs...)
}
