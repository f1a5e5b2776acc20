// SPDX-License-Identifier: Apache-2.0

package state_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/state"
)

func TestRelay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if got, err := state.LoadRelay(dir); err != nil || got != nil {
		t.Errorf("without a file: got %v, %v, want nothing", got, err)
	}
	until := time.Unix(1_800_000_000, 0)
	want := []path.Kept{
		{
			Node: path.Short{1}, Key: wgtypes.Key{2}, Until: until,
			Addr: netip.MustParseAddrPort("[2001:db8::1]:51820"), Local: netip.MustParseAddr("2001:db8::2"),
			Rows: []path.KeptRow{{Index: 1 << 31, To: path.Short{3}, Until: until}, {Index: 0, Until: until}},
		},
		{Node: path.Short{4}, Addr: path.StreamAddr(mesh.ID{4, 15: 4}), Until: until},
	}
	for range 2 {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ".relay.cbor.1.tmp"), nil, 0o600); err != nil { // of a killed process
			t.Fatal(err)
		}
		if err := state.SaveRelay(dir, want); err != nil {
			t.Fatal(err)
		}
		got, err := state.LoadRelay(dir)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.IgnoreUnexported(path.KeptRow{})); err != nil || diff != "" {
			t.Errorf("got %v, and with - for what is missing:\n%s", err, diff)
		}
	}
	wantNames(t, dir, state.RelayFile)

	refusesDamaged(t, dir, state.RelayFile, state.LoadRelay)
}

// TestRelayNotKept has a full disk: what was kept before is still there.
func TestRelayNotKept(t *testing.T) {
	dir := smallDisk(t)
	first := []path.Kept{{Node: path.Short{1}, Addr: netip.MustParseAddrPort("192.0.2.1:51820")}}
	if err := state.SaveRelay(dir, first); err != nil {
		t.Fatal(err)
	}
	fillDisk(t, dir)
	if err := state.SaveRelay(dir, nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want %v", err, unix.ENOSPC)
	}
	if got, err := state.LoadRelay(dir); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v, want what was kept before", got, err)
	}
}
