// SPDX-License-Identifier: Apache-2.0

package state_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

const machine = "0123456789abcdef0123456789abcdef"

func TestOpenPermissions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lib", "meshd")
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	identity(t, d, machine)
	saveNode(t, d, claimed)
	saveObjects(t, d, remembered)

	want := map[string]os.FileMode{
		".":             os.ModeDir | 0o700,
		"lock":          0o600,
		"identity.json": 0o600,
		"node.json":     0o600,
		"objects.cbor":  0o600,
	}
	got := map[string]os.FileMode{}
	for name := range want {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		got[name] = info.Mode()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
	wantNames(t, path, "identity.json", "lock", "node.json", "objects.cbor")
}

func TestOpenLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshd")
	first := open(t, path)
	if err := os.WriteFile(filepath.Join(path, ".node.json.1.tmp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	_, err := state.Open(path)
	if !errors.Is(err, state.ErrLocked) {
		t.Fatalf("second Open: got %v, want %v", err, state.ErrLocked)
	}
	for _, want := range []string{path, "another meshd runs"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to contain %q", err, want)
		}
	}
	// A process without the lock must not remove the temporary files of the one that has it.
	wantNames(t, path, ".node.json.1.tmp", "lock")

	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	wantNames(t, path, "lock")
}

func TestOpenError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(path); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("got %v, want %v", err, unix.ENOTDIR)
	}
}

func TestIdentity(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	made, origin := identity(t, d, machine)
	if origin != state.Made {
		t.Errorf("first start: got %q, want %q", origin, state.Made)
	}
	if got, want := fmt.Sprintf("%v", made), mesh.IDOf(ed25519.PublicKey(made.Key[32:])).String(); got != want {
		t.Errorf("printed: got %q, want the fingerprint %q", got, want)
	}
	before := read(t, path, "identity.json")

	loaded, origin := identity(t, d, machine)
	if origin != state.Loaded {
		t.Errorf("second start: got %q, want %q", origin, state.Loaded)
	}
	if diff := cmp.Diff(made, loaded); diff != "" {
		t.Errorf("identity (-made +loaded):\n%s", diff)
	}
	if diff := cmp.Diff(before, read(t, path, "identity.json")); diff != "" {
		t.Errorf("file changed by loading (-before +after):\n%s", diff)
	}

	other, _ := identity(t, open(t, t.TempDir()), machine)
	if other.ID() != made.ID() {
		t.Error("the same random bytes made two identities")
	}
}

func TestIdentityCloned(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	original, _ := identity(t, d, machine)
	saveNode(t, d, claimed)
	saveObjects(t, d, remembered)
	files := map[string][]byte{
		"identity.json": read(t, path, "identity.json"),
		"node.json":     read(t, path, "node.json"),
	}
	suffix := ".cloned-" + original.ID().String()[:8]

	clone, origin, err := d.Identity("another machine", rand.NewChaCha8([32]byte{1}))
	if err != nil {
		t.Fatal(err)
	}
	if origin != state.Cloned || clone.ID() == original.ID() || clone.WireGuard == original.WireGuard {
		t.Errorf("got %v, %q, want a new identity", clone, origin)
	}
	for name, want := range files {
		if diff := cmp.Diff(want, read(t, path, name+suffix)); diff != "" {
			t.Errorf("%s set aside (-want +got):\n%s", name, diff)
		}
	}
	got, err := d.Node()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(unclaimed, got); diff != "" {
		t.Errorf("node of the clone (-want +got):\n%s", diff)
	}
	loaded, origin, err := d.Identity("another machine", nil)
	if err != nil || origin != state.Loaded || loaded.ID() != clone.ID() {
		t.Errorf("the clone's next start: got %v, %q, %v, want %v, %q", loaded, origin, err, clone, state.Loaded)
	}
}

// When a disk is copied twice, no renamed file is replaced.
func TestIdentityClonedAgain(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	original, _ := identity(t, d, machine)
	suffix := ".cloned-" + original.ID().String()[:8]
	if err := os.WriteFile(filepath.Join(path, "identity.json"+suffix), []byte("earlier"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, origin := identity(t, d, "another machine"); origin != state.Cloned {
		t.Errorf("got %q, want %q", origin, state.Cloned)
	}
	if got := read(t, path, "identity.json"+suffix); string(got) != "earlier" {
		t.Errorf("the earlier file now holds %q", got)
	}
	wantNames(t, path, "identity.json", "identity.json"+suffix, "identity.json"+suffix+"-2", "lock")
}

func TestIdentityRefused(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	identity(t, d, machine)
	good := string(read(t, path, "identity.json"))
	file := filepath.Join(path, "identity.json")

	tests := []struct {
		name string
		data string
		want error
	}{
		{"empty", "", state.ErrDamaged},
		{"zeros", strings.Repeat("\x00", len(good)), state.ErrDamaged},
		{"foreign", `{"Id": "QmYyQ"}`, state.ErrDamaged},
		{"newer", `{"version": 2, "keys": []}`, state.ErrNewer},
		{"twice", good + good, state.ErrDamaged},
		{"misspelt key", strings.Replace(good, "machine", "machina", 1), state.ErrDamaged},
		{"another seed", strings.Replace(good, `seed": "`, `seed": "AAAA`, 1), state.ErrDamaged},
		{"long machine", strings.Replace(good, `machine": "`, `machine": "00`, 1), state.ErrDamaged},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(tt.data), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := d.Identity(machine, rand.NewChaCha8([32]byte{}))
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("got %q, want it to name %s and advice", err, file)
			}
			if diff := cmp.Diff(tt.data, string(read(t, path, "identity.json"))); diff != "" {
				t.Errorf("refused file (-before +after):\n%s", diff)
			}
		})
	}
}

// A changed byte must not lead to another identity without an error.
func TestIdentityBadDisk(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	want, _ := identity(t, d, machine)
	good := read(t, path, "identity.json")
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if err := os.WriteFile(filepath.Join(path, "identity.json"), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		got, origin, err := d.Identity(machine, rand.NewChaCha8([32]byte{1}))
		if err == nil && origin == state.Loaded && !cmp.Equal(want, got) {
			t.Errorf("byte %d: loaded another identity", i)
		}
		if origin == state.Cloned && !bytes.Contains(good[:i], []byte(`"machine"`)) {
			t.Errorf("byte %d: took it for a clone", i)
		}
	}
}

func TestNode(t *testing.T) {
	tests := []struct {
		name string
		node state.Node
	}{
		{"unclaimed", unclaimed},
		{"claimed", claimed},
		{"slot 0", state.Node{Boot: 1, Sequence: 1, Claim: mesh.Claim{Slot: 0, Time: 0}}},
		{"adopted", state.Node{Boot: 1, Sequence: 1, Claim: mesh.Claim{Slot: mesh.None}, Adopted: state.Adopted{Generation: 2, Mode: mesh.ModeLocation, Encapsulation: "never", Gateways: 3}}},
		{"duplicate", state.Node{Boot: 1, Sequence: 1, Claim: mesh.Claim{Slot: mesh.None}, Duplicate: true}},
		{"extremes", state.Node{
			Boot: math.MaxUint64, Sequence: math.MaxUint64,
			Claim: mesh.Claim{Slot: math.MaxInt32, Time: math.MinInt64}, Ready: true,
		}},
	}
	d := open(t, t.TempDir())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			saveNode(t, d, tt.node)
			got, err := d.Node()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.node, got); diff != "" {
				t.Errorf("node (-saved +read):\n%s", diff)
			}
		})
	}
}

// A file of a version whose claims had no class keeps its claim.
func TestNodeWithoutClass(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	data := `{"version": 1, "boot": 2, "sequence": 7, "claim": {"slot": 3, "time": 5, "since": 6, "ready": true}, "adopted": null}`
	if err := os.WriteFile(filepath.Join(path, state.NodeFile), []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := d.Node()
	if err != nil {
		t.Fatal(err)
	}
	want := state.Node{Boot: 2, Sequence: 7, Claim: mesh.Claim{Slot: 3, Time: 5, Since: 6}, Ready: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("node (-want +read):\n%s", diff)
	}
}

func TestNodeRefused(t *testing.T) {
	tests := []struct {
		name string
		data string
		want error
	}{
		{"newer", `{"version": 2, "boot": 1, "slots": []}`, state.ErrNewer},
		{"no version", `{"boot": 1, "sequence": 1, "claim": null}`, state.ErrDamaged},
		{"no sequence", `{"version": 1, "boot": 1, "claim": null}`, state.ErrDamaged},
		{"negative slot", `{"version": 1, "boot": 1, "sequence": 1, "claim": {"slot": -1, "confirmed": false, "time": 1, "since": 1, "ready": true}}`, state.ErrDamaged},
		{"half a claim", `{"version": 1, "boot": 1, "sequence": 1, "claim": {"slot": 3, "confirmed": true, "ready": true}}`, state.ErrDamaged},
		{"half of adopted settings", `{"version": 1, "boot": 1, "sequence": 1, "claim": null, "adopted": {"generation": 3}}`, state.ErrDamaged},
		{"fraction", `{"version": 1, "boot": 1, "sequence": 1.5, "claim": null}`, state.ErrDamaged},
		{"unknown key", `{"version": 1, "boot": 1, "sequence": 1, "claim": null, "reboot": 1}`, state.ErrDamaged},
	}
	path := t.TempDir()
	d := open(t, path)
	file := filepath.Join(path, "node.json")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(tt.data), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := d.Node()
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if !strings.Contains(err.Error(), file) {
				t.Errorf("got %q, want it to name %s", err, file)
			}
		})
	}
}

func TestObjectsRoundTrip(t *testing.T) {
	d := open(t, t.TempDir())
	if got, err := d.Objects(); err != nil || !cmp.Equal(got, state.Remembered{}) {
		t.Errorf("no file: got %v, %v, want nothing", got, err)
	}
	rapid.Check(t, func(t *rapid.T) {
		want := state.Remembered{
			Objects: rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(t, "objects"),
			Highest: rapid.SliceOf(rapid.Custom(func(t *rapid.T) state.Highest {
				return state.Highest{
					Key:      string(rapid.SliceOf(rapid.Byte()).Draw(t, "key")),
					Sequence: rapid.Uint64().Draw(t, "sequence"),
				}
			})).Draw(t, "highest"),
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "absent") {
			want.Absent = append(want.Absent, state.Absence{ID: mesh.ID{byte(i)}, Time: time.Duration(rapid.Int64().Draw(t, "time"))})
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "clients") {
			want.Clients = append(want.Clients, state.Client{Key: wgtypes.Key{byte(i)}, Endpoint: netip.AddrPortFrom(netip.IPv6Loopback(), rapid.Uint16().Draw(t, "port"))})
		}
		if err := d.SaveObjects(want); err != nil {
			t.Fatal(err)
		}
		got, err := d.Objects()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("objects (-saved +read):\n%s", diff)
		}
	})
}

func TestObjectsTooMany(t *testing.T) {
	d := open(t, t.TempDir())
	if err := d.SaveObjects(state.Remembered{Objects: make([][]byte, 1<<17+1)}); err == nil {
		t.Error("saved more than can be read again")
	}
	if err := d.SaveObjects(state.Remembered{Objects: make([][]byte, 1<<17)}); err != nil {
		t.Error(err)
	}
	if _, err := d.Objects(); err != nil {
		t.Error(err)
	}
}

func TestSetAside(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	for _, want := range []string{"objects.cbor.damaged", "objects.cbor.damaged-2"} {
		if err := os.WriteFile(filepath.Join(path, "objects.cbor"), []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Objects(); !errors.Is(err, state.ErrDamaged) {
			t.Fatalf("got %v, want %v", err, state.ErrDamaged)
		}
		got, err := d.SetAside(state.ObjectsFile)
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(path, want); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := read(t, path, want); string(got) != want {
			t.Errorf("%s holds %q", want, got)
		}
		if _, err := d.Objects(); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
	if _, err := d.SetAside(state.ObjectsFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing there: got %v, want %v", err, os.ErrNotExist)
	}
}

// A truncated file is an error, never a part of the state.
func TestTorn(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	want, _ := identity(t, d, machine)
	saveNode(t, d, claimed)
	saveObjects(t, d, remembered)

	tests := []struct {
		file string
		read func() (any, error)
		want any
	}{
		{state.IdentityFile, func() (any, error) {
			got, _, err := d.Identity(machine, nil)
			return got, err
		}, want},
		{state.NodeFile, func() (any, error) { return d.Node() }, claimed},
		{state.ObjectsFile, func() (any, error) { return d.Objects() }, remembered},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			whole := read(t, path, tt.file)
			for n := range len(whole) + 1 {
				if err := os.WriteFile(filepath.Join(path, tt.file), whole[:n], 0o600); err != nil {
					t.Fatal(err)
				}
				got, err := tt.read()
				if err != nil {
					if !errors.Is(err, state.ErrDamaged) {
						t.Errorf("%d of %d bytes: got %v, want %v", n, len(whole), err, state.ErrDamaged)
					}
					continue
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("%d of %d bytes (-want +got):\n%s", n, len(whole), diff)
				}
			}
			if got, err := tt.read(); err != nil || !cmp.Equal(tt.want, got) {
				t.Errorf("whole file: got %v, %v", got, err)
			}
		})
	}
}

// smallDisk returns a directory on a file system of 32 KiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	// Use a mount namespace of this thread. The thread is never unlocked, so it ends with the
	// test, and the namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=32k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}

// fillDisk fills the file system of a directory with a file, and returns its path.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	fill, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fill.Write(make([]byte, 64<<10)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill the disk: got %v, want %v", err, unix.ENOSPC)
	}
	if err := fill.Close(); err != nil {
		t.Fatal(err)
	}
	return fill.Name()
}

func TestDiskFull(t *testing.T) {
	path := smallDisk(t)
	d := open(t, path)
	saveNode(t, d, claimed)
	saveObjects(t, d, remembered)
	fillDisk(t, path)

	_, _, err := d.Identity(machine, rand.NewChaCha8([32]byte{}))
	for what, err := range map[string]error{
		"identity": err,
		"node":     d.SaveNode(unclaimed),
		"objects":  d.SaveObjects(state.Remembered{Objects: [][]byte{make([]byte, 64<<10)}}),
	} {
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: got %v, want %v", what, err, unix.ENOSPC)
		}
	}
	if got, err := d.Node(); err != nil || !cmp.Equal(claimed, got) {
		t.Errorf("node: got %v, %v, want the old one", got, err)
	}
	if got, err := d.Objects(); err != nil || !cmp.Equal(remembered, got) {
		t.Errorf("objects: got %v, %v, want the old ones", got, err)
	}
	wantNames(t, path, "ballast", "lock", "node.json", "objects.cbor")
}

var (
	unclaimed  = state.Node{Claim: mesh.Claim{Slot: mesh.None}}
	claimed    = state.Node{Boot: 7, Sequence: 123456789, Claim: mesh.Claim{Slot: 12, Time: 1767225600123, Since: 17}, Ready: true}
	remembered = state.Remembered{
		Objects: [][]byte{[]byte("one object"), {}, bytes.Repeat([]byte{0xff}, 300)},
		Highest: []state.Highest{{Key: "\x00\xff not UTF-8", Sequence: math.MaxUint64}, {Key: "", Sequence: 0}},
	}
)

func open(t *testing.T, path string) *state.Dir {
	t.Helper()
	d, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

func identity(t *testing.T, d *state.Dir, machineID string) (state.Identity, state.Origin) {
	t.Helper()
	id, origin, err := d.Identity(machineID, rand.NewChaCha8([32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	return id, origin
}

func saveNode(t *testing.T, d *state.Dir, n state.Node) {
	t.Helper()
	if err := d.SaveNode(n); err != nil {
		t.Fatal(err)
	}
}

func saveObjects(t *testing.T, d *state.Dir, r state.Remembered) {
	t.Helper()
	if err := d.SaveObjects(r); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// refusesDamaged cuts a file at each byte, and changes each, and wants that nothing is read then.
func refusesDamaged[T any](t *testing.T, dir, name string, load func(dir string) ([]T, error)) {
	t.Helper()
	whole := read(t, dir, name)
	for n := range whole {
		for how, damaged := range map[string][]byte{"cut": whole[:n], "changed": bytes.Join([][]byte{whole[:n], {^whole[n]}, whole[n+1:]}, nil)} {
			if err := os.WriteFile(filepath.Join(dir, name), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := load(dir); got != nil || !errors.Is(err, state.ErrDamaged) && !errors.Is(err, state.ErrNewer) {
				t.Fatalf("%s at %d: got %v, %v, want an error", how, n, got, err)
			}
		}
	}
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func Example() {
	path, err := os.MkdirTemp("", "meshd")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(path)

	d, err := state.Open(path)
	if err != nil {
		panic(err)
	}
	defer d.Close()
	if err := d.SaveNode(state.Node{Boot: 1, Sequence: 4, Claim: mesh.Claim{Slot: 3, Time: 1767225600000}}); err != nil {
		panic(err)
	}
	data, err := os.ReadFile(filepath.Join(path, state.NodeFile))
	if err != nil {
		panic(err)
	}
	fmt.Print(string(data))
	// Output:
	// {
	//   "version": 1,
	//   "boot": 1,
	//   "sequence": 4,
	//   "claim": {
	//     "slot": 3,
	//     "confirmed": false,
	//     "time": 1767225600000,
	//     "since": 0,
	//     "ready": false
	//   },
	//   "adopted": null
	// }
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshd")
	nothing, err := state.Lock(path)
	if err != nil {
		t.Fatalf("no directory: %v", err)
	}
	if err := nothing.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: got %v, want none made", err)
	}

	d := open(t, path)
	if _, err := state.Lock(path); !errors.Is(err, state.ErrLocked) {
		t.Errorf("a daemon runs: got %v, want %v", err, state.ErrLocked)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	lock, err := state.Lock(path)
	if err != nil {
		t.Fatalf("no daemon runs: %v", err)
	}
	if _, err := state.Open(path); !errors.Is(err, state.ErrLocked) {
		t.Errorf("open while locked: got %v, want %v", err, state.ErrLocked)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
}
