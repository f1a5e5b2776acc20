// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/portmap"
	"github.com/meshd/meshd/internal/state"
)

// A daemon whose control socket somebody deleted runs all the same.
func TestDownRefusesWithoutSocket(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "meshd.yaml")
	text := "secret-file: /etc/meshd/secret\nwireguard: {interface: nobodys}\ncni: {enabled: false}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	running, err := state.Open(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Down(t.Context(), Options{Config: config, StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")})
	if !errors.Is(err, control.ErrRefused) {
		t.Errorf("got %v, want %v", err, control.ErrRefused)
	}
	if err := running.Close(); err != nil {
		t.Error(err)
	}
}

// TestRemovePortMappings has routers that are gone. What ends by itself is forgotten; what stays
// is an error, and known the next time.
func TestRemovePortMappings(t *testing.T) {
	dir := t.TempDir()
	gone := portmap.Mapping{
		Protocol: portmap.PCP, Gateway: netip.MustParseAddr("127.53.52.1"),
		Internal: netip.MustParseAddrPort("127.0.0.1:51820"), External: netip.MustParseAddrPort("203.0.113.9:51820"),
	}
	stays := gone
	stays.Permanent = true
	for _, tt := range []struct {
		name    string
		all     []portmap.Mapping
		wantErr bool
		left    int
	}{
		{"none", nil, false, 0},
		{"one that ends", []portmap.Mapping{gone}, false, 0},
		{"one that stays", []portmap.Mapping{stays}, true, 1},
	} {
		if err := state.SavePortMappings(dir, tt.all); err != nil {
			t.Fatal(err)
		}
		lines, err := removePortMappings(t.Context(), dir)
		left, readErr := state.LoadPortMappings(dir)
		if (err != nil) != tt.wantErr || readErr != nil || len(lines) != 0 || len(left) != tt.left {
			t.Errorf("%s: got %q and %v, and left %v, %v", tt.name, lines, err, left, readErr)
		}
	}
}
