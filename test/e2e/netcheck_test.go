// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// TestNetcheck asks nodes behind routers of different kinds what their networks let pass.
func TestNetcheck(t *testing.T) {
	t.Parallel()
	hairpinUplink := homeOf("hairpin", lab.Router{Hairpin: true})
	m := newUplinks(t, publicUplink, publicUplink, preservingUplink, hairpinUplink, dependentUplink, coneUplink, officeUplink)
	type kind struct {
		udp     control.Answer
		nat     control.NAT // by IPv4
		open    bool
		hairpin control.Answer
		means   string
	}
	wants := []kind{
		{control.Yes, control.NATNone, true, control.Unknown, "There is nothing to open"},
		{control.Yes, control.NATNone, true, control.Unknown, "There is nothing to open"},
		{control.Yes, control.NATSamePort, false, control.No, "directly all nodes but those behind a NAT that changes ports"},
		{control.Yes, control.NATSamePort, false, control.Yes, "directly all nodes but those behind a NAT that changes ports"},
		{control.Yes, control.NATPorts, false, control.Unknown, "directly only the nodes that are open"},
		{control.Yes, control.NATSamePort, true, control.No, "There is nothing to open"},
		{control.No, control.NATUnknown, false, control.Unknown, "Let UDP from port 51820 of this host out"},
	}
	m.eventually(settleLimit, func() error {
		m.connected(settleLimit, m.nodes...)
		var errs []error
		for i, n := range m.nodes {
			got, err := netcheck(m, n)
			if err != nil {
				return err
			}
			four := slices.IndexFunc(got.Families, func(f control.Family) bool { return f.Name == "IPv4" })
			if four < 0 {
				errs = append(errs, fmt.Errorf("%s: got %+v, want IPv4 in it", n.Name, got))
				continue
			}
			f, want := got.Families[four], wants[i]
			if got.UDP != want.udp || f.NAT != want.nat || (f.Reached == control.Yes) != want.open || got.Hairpin != want.hairpin {
				errs = append(errs, fmt.Errorf("%s: got %+v, want %+v", n.Name, got, want))
				continue
			}
			text, err := n.Meshd(m.ctx, "netcheck")
			if err != nil || !strings.Contains(text, want.means) {
				errs = append(errs, fmt.Errorf("%s: got %v and:\n%s\nwant %q in it", n.Name, err, text, want.means))
			}
		}
		return errors.Join(errs...)
	})
	for i, relays := range [][]string{{"public-1", "cone-5"}, {"public-0", "cone-5"}} {
		got, err := netcheck(m, m.nodes[i])
		m.must(err)
		var names []string
		for _, r := range got.Relays {
			names = append(names, r.Name)
		}
		if slices.Sort(names); !slices.Equal(names, slices.Sorted(slices.Values(relays))) {
			t.Errorf("%s: got relays %v, want %v", m.nodes[i].Name, names, relays)
		}
	}
}

func netcheck(m *testbed, n *lab.Node) (got control.Network, err error) {
	out, err := n.Meshd(m.ctx, "netcheck", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &got)
	}
	return got, err
}
