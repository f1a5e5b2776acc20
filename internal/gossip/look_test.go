// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

func TestLook(t *testing.T) {
	nodes := startCluster(t, 2)
	a, b := nodes[0], nodes[1]
	eventually(t, "two nodes", []*testNode{a, b}, func(v mesh.View) bool { return len(v.Records) == 2 })
	remembered := func() string {
		a.transport.mu.Lock()
		defer a.transport.mu.Unlock()
		return fmt.Sprint(len(a.transport.addresses.nodes), len(a.transport.streamsOf))
	}
	before := remembered()
	other := func(change func(c *mesh.Cluster)) mesh.Cluster {
		c := testCluster()
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name    string
		secret  [32]byte
		cluster mesh.Cluster
		names   []string
		differs string
		err     error
	}{
		{"well", testSecret, testCluster(), []string{"node-0", "node-1"}, "", nil},
		{"another mode", testSecret, other(func(c *mesh.Cluster) { c.Mode = mesh.ModeFull }), []string{"node-0", "node-1"}, "", nil},
		{"another secret", [32]byte{9}, testCluster(), nil, "", ErrSecret},
		{"another range", testSecret, other(func(c *mesh.Cluster) { c.Pods = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")} }), nil, "cluster.pods is [10.99.0.0/16] here, [10.42.0.0/16] on", nil},
		{"another cluster", testSecret, other(func(c *mesh.Cluster) { c.Name = "west" }), nil, `cluster "west" here, "default" on`, nil},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		got, err := Look(ctx, a.Addr().String(), [][32]byte{tt.secret}, tt.cluster)
		cancel()
		var names []string
		for _, r := range got.Records {
			names = append(names, r.Name)
		}
		slices.Sort(names)
		if !errors.Is(err, tt.err) || !slices.Equal(names, tt.names) || !strings.HasPrefix(strings.Join(got.Differs, ""), tt.differs) || (tt.differs == "") != (got.Differs == nil) {
			t.Errorf("%s: got %v, %q, %v", tt.name, names, got.Differs, err)
		}
		if err == nil && (got.ID != a.self || got.Cluster.Mode != mesh.ModeLocation) {
			t.Errorf("%s: got %v of %+v", tt.name, got.ID, got.Cluster)
		}
	}
	if v := a.View(); len(v.Alive) != 2 || len(v.Problems) > 0 {
		t.Errorf("afterwards %d nodes are alive, want 2; problems %v", len(v.Alive), v.Problems)
	}
	eventually(t, "the node remembers nobody who has looked", []*testNode{a}, func(mesh.View) bool { return remembered() == before })
}

// TestLookNowhere: what listens, and is no node, is an error.
func TestLookNowhere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			time.Sleep(10 * time.Millisecond)
			c.Close()
		}
	}()
	if _, err := Look(t.Context(), l.Addr().String(), [][32]byte{testSecret}, testCluster()); err == nil {
		t.Error("got no error")
	}
	gone := l.Addr().String()
	l.Close()
	if _, err := Look(t.Context(), gone, [][32]byte{testSecret}, testCluster()); err == nil || !strings.Contains(err.Error(), "look at "+gone) {
		t.Errorf("got %v", err)
	}
}
