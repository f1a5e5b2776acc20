// SPDX-License-Identifier: Apache-2.0

package state_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/portmap"
	"github.com/meshd/meshd/internal/state"
)

var mappings = []portmap.Mapping{
	{
		Protocol: portmap.PCP, Gateway: netip.MustParseAddr("192.168.1.1"), Nonce: [12]byte{1, 11: 12},
		Internal: netip.MustParseAddrPort("192.168.1.7:51820"), External: netip.MustParseAddrPort("203.0.113.9:40001"),
	},
	{
		Protocol: portmap.UPnP, Gateway: netip.MustParseAddr("192.168.1.1"), Permanent: true,
		Internal: netip.MustParseAddrPort("192.168.1.7:7946"), External: netip.MustParseAddrPort("203.0.113.9:7946"),
	},
}

func TestPortMappings(t *testing.T) {
	dir := t.TempDir()
	if got, err := state.LoadPortMappings(dir); err != nil || got != nil {
		t.Errorf("without a file: got %v, %v, want nothing", got, err)
	}
	if err := state.SavePortMappings(dir, nil); err != nil {
		t.Errorf("nothing to keep: %v", err)
	}
	wantNames(t, dir)
	for range 2 {
		if err := os.WriteFile(filepath.Join(dir, ".portmap.cbor.1.tmp"), nil, 0o600); err != nil { // of a killed process
			t.Fatal(err)
		}
		if err := state.SavePortMappings(dir, mappings); err != nil {
			t.Fatal(err)
		}
		got, err := state.LoadPortMappings(dir)
		if diff := cmp.Diff(mappings, got, cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})); err != nil || diff != "" {
			t.Errorf("got %v, and (-want +got):\n%s", err, diff)
		}
	}
	wantNames(t, dir, state.PortMappingsFile)

	refusesDamaged(t, dir, state.PortMappingsFile, state.LoadPortMappings)
	if err := state.SavePortMappings(dir, nil); err != nil {
		t.Fatal(err)
	}
	wantNames(t, dir)
}

// TestPortMappingsNotKept has a full disk: what was kept before is still there.
func TestPortMappingsNotKept(t *testing.T) {
	dir := smallDisk(t)
	if err := state.SavePortMappings(dir, mappings[:1]); err != nil {
		t.Fatal(err)
	}
	fillDisk(t, dir)
	if err := state.SavePortMappings(dir, mappings); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want %v", err, unix.ENOSPC)
	}
	if got, err := state.LoadPortMappings(dir); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v, want what was kept before", got, err)
	}
}
