// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/portmap"
)

// What a parser accepts must be the same after encoding and parsing it again. What it does
// not accept must be ErrDamaged or ErrNewer.

func FuzzDecodeIdentity(f *testing.F) {
	id, err := newIdentity(rand.NewChaCha8([32]byte{}))
	if err != nil {
		f.Fatal(err)
	}
	seed(f, func() ([]byte, error) { return encodeIdentity(id, machineHash("machine")) })
	f.Fuzz(func(t *testing.T, data []byte) {
		got, machine, err := decodeIdentity(data)
		if refused(t, err) {
			return
		}
		data, err = encodeIdentity(got, machine)
		if err != nil {
			t.Fatal(err)
		}
		again, machineAgain, err := decodeIdentity(data)
		if err != nil || machineAgain != machine || !cmp.Equal(got, again) {
			t.Errorf("got %v bound to %q, %v, want %v bound to %q", again, machineAgain, err, got, machine)
		}
	})
}

func FuzzDecodePathKey(f *testing.F) {
	key, err := newPathKey(rand.NewChaCha8([32]byte{}))
	if err != nil {
		f.Fatal(err)
	}
	seed(f, func() ([]byte, error) { return encodePathKey(key, counterBlock) })
	f.Fuzz(func(t *testing.T, data []byte) {
		got, reserved, err := decodePathKey(data)
		if refused(t, err) {
			return
		}
		data, err = encodePathKey(got, reserved)
		if err != nil {
			t.Fatal(err)
		}
		again, reservedAgain, err := decodePathKey(data)
		if err != nil || reservedAgain != reserved || !again.Equal(got) {
			t.Errorf("got another key with %d reserved, %v, want %d", reservedAgain, err, reserved)
		}
	})
}

func FuzzDecodeNode(f *testing.F) {
	for _, n := range []Node{
		{Claim: mesh.Claim{Slot: mesh.None}},
		{Boot: 1, Sequence: 2, Claim: mesh.Claim{Slot: 3, Time: 4}, Ready: true},
		{Boot: 1, Sequence: 2, Claim: mesh.Claim{Slot: mesh.None}, Adopted: Adopted{Generation: 1, Mode: mesh.ModeFull, Encapsulation: "always", Gateways: 1}},
	} {
		seed(f, func() ([]byte, error) { return encodeNode(n) })
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeNode(data)
		if refused(t, err) {
			return
		}
		data, err = encodeNode(got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeNode(data)
		if err != nil || got != again {
			t.Errorf("got %v, %v, want %v", again, err, got)
		}
	})
}

func FuzzDecodeObjects(f *testing.F) {
	for _, r := range []Remembered{
		{},
		{Objects: [][]byte{{1, 2, 3}}, Highest: []Highest{{Key: "\xff", Sequence: 1}}},
		{Absent: []Absence{{ID: mesh.ID{1}, Time: time.Hour}}},
	} {
		seed(f, func() ([]byte, error) { return encodeObjects(r) })
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeObjects(data)
		if refused(t, err) {
			return
		}
		first, err := encodeObjects(got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeObjects(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := encodeObjects(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Errorf("got %x, %v, want %x", second, err, first)
		}
	})
}

func FuzzDecodeRelay(f *testing.F) {
	for _, all := range [][]path.Kept{
		nil,
		{{
			Node: path.Short{1}, Key: wgtypes.Key{2}, Addr: netip.MustParseAddrPort("192.0.2.1:51820"), Local: netip.MustParseAddr("192.0.2.2"),
			Until: time.Unix(1e9, 0), Rows: []path.KeptRow{{Index: 3, To: path.Short{4}, Until: time.Unix(1e9, 0)}},
		}},
		{{Node: path.Short{1}, Addr: path.StreamAddr(mesh.ID{1, 2})}},
	} {
		seed(f, func() ([]byte, error) { return encodeSummed(all) })
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, again []path.Kept
		err := decodeSummed(data, &got)
		if refused(t, err) {
			return
		}
		first, err := encodeSummed(got)
		if err != nil {
			t.Fatal(err)
		}
		if err := decodeSummed(first, &again); err != nil {
			t.Fatal(err)
		}
		second, err := encodeSummed(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Errorf("got %x, %v, want %x", second, err, first)
		}
	})
}

func FuzzDecodePortMappings(f *testing.F) {
	for _, all := range [][]portmap.Mapping{
		nil,
		{{
			Protocol: portmap.PCP, Gateway: netip.MustParseAddr("192.168.1.1"), Nonce: [12]byte{1},
			Internal: netip.MustParseAddrPort("192.168.1.7:51820"), External: netip.MustParseAddrPort("203.0.113.9:51820"), Permanent: true,
		}},
	} {
		seed(f, func() ([]byte, error) { return encodeSummed(all) })
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, again []portmap.Mapping
		err := decodeSummed(data, &got)
		if refused(t, err) {
			return
		}
		first, err := encodeSummed(got)
		if err != nil {
			t.Fatal(err)
		}
		if err := decodeSummed(first, &again); err != nil || !slices.Equal(got, again) {
			t.Errorf("got %v, %v, want %v", again, err, got)
		}
	})
}

func seed(f *testing.F, encode func() ([]byte, error)) {
	data, err := encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add(bytes.Replace(data, []byte("1"), []byte("2"), 1))
}

func refused(t *testing.T, err error) bool {
	if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
		t.Errorf("got %v, want %v or %v", err, ErrDamaged, ErrNewer)
	}
	return err != nil
}
