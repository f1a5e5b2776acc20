// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/meshd/meshd/internal/mesh"
)

// TestSettings has etcd read the files that members get.
func TestSettings(t *testing.T) {
	members := map[string]netip.Addr{"a3": netip.MustParseAddr("10.4.0.3"), "b3": netip.MustParseAddr("10.4.0.6")}
	for timings, want := range map[mesh.EtcdTimings][2]uint{
		mesh.EtcdLAN: {500, 5000},
		mesh.EtcdWAN: {250, 4750},
	} {
		t.Run(string(timings), func(t *testing.T) {
			text, err := settings("b3", members, timings)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "etcd.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := embed.ConfigFromFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got.TickMs != want[0] || got.ElectionMs != want[1] {
				t.Errorf("heartbeat and election timeout: got %d and %d ms, want %d and %d", got.TickMs, got.ElectionMs, want[0], want[1])
			}
			if u := got.ListenPeerUrls[0].String(); u != "http://10.4.0.6:2380" {
				t.Errorf("peers' address: got %s", u)
			}
		})
	}
}
