// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
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
		got, err := lookAt(ctx, a.Addr().String(), tt.secret, tt.cluster)
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

func lookAt(ctx context.Context, at string, secret [32]byte, c mesh.Cluster) (Looked, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", at)
	if err != nil {
		return Looked{}, err
	}
	defer conn.Close()
	return Look(ctx, conn, at, [][32]byte{secret}, c)
}

// TestLookAtOthers: what is no node is an error, as is one that says nothing.
func TestLookAtOthers(t *testing.T) {
	for says, isSecret := range map[string]bool{"SSH-2.0-OpenSSH_9.2\r\n": true, "": false} {
		near, far := net.Pipe()
		go func() {
			go func() { _, _ = io.Copy(io.Discard, far) }()
			_, _ = io.WriteString(far, says)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := Look(ctx, near, "there", [][32]byte{testSecret}, testCluster())
		if cancel(); err == nil || errors.Is(err, ErrSecret) != isSecret || !strings.Contains(err.Error(), "greet there") {
			t.Errorf("%q: got %v", says, err)
		}
		near.Close()
		far.Close()
	}
}
