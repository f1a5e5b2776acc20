// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a fake that returns its fields and records its arguments.
type daemon struct {
	status    control.Status
	plan      control.Plan
	planErr   error
	forgotten []string
	rotateErr error
	forgetErr error

	revoked     string
	renumbered  control.Renumbered
	forced      []bool
	renumberErr error
}

func (d *daemon) Status() control.Status                     { return d.status }
func (d *daemon) Plan(context.Context) (control.Plan, error) { return d.plan, d.planErr }

func (d *daemon) Ping(_ context.Context, node string, count int) (control.Ping, error) {
	return control.Ping{Node: node, Sent: count}, nil
}

func (d *daemon) Forget(_ context.Context, node string) error {
	d.forgotten = append(d.forgotten, node)
	return d.forgetErr
}

func (d *daemon) Revoke(_ context.Context, node string) (control.Revoked, error) {
	d.revoked = node
	return control.Revoked{ID: mesh.ID{7}, Name: node}, nil
}

func (d *daemon) RotateSecret(context.Context) (control.Rotated, error) {
	return control.Rotated{Round: "use", Old: mesh.SecretHash{1}, New: mesh.SecretHash{2, 3}, Nodes: 3, Trust: mesh.TrustOpen}, d.rotateErr
}

// TestRotateSecret checks that a round, and why there is none, get to the one who asks.
func TestRotateSecret(t *testing.T) {
	d := new(daemon)
	c, _ := serve(t, d)
	want, _ := d.RotateSecret(t.Context())
	if got, err := c.RotateSecret(t.Context()); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	d.rotateErr = fmt.Errorf("%w: b1 is not alive", control.ErrRefused)
	if _, err := c.RotateSecret(t.Context()); !errors.Is(err, control.ErrRefused) || err.Error() != d.rotateErr.Error() {
		t.Errorf("got %v, want %v", err, d.rotateErr)
	}
}

func (d *daemon) Renumber(_ context.Context, force bool) (control.Renumbered, error) {
	d.forced = append(d.forced, force)
	return d.renumbered, d.renumberErr
}

func TestRevokeAndRenumber(t *testing.T) {
	d := &daemon{renumbered: control.Renumbered{Former: control.Slot{Slot: 3}, Now: control.Slot{Slot: 4}}}
	c, _ := serve(t, d)
	revoked, err := c.Revoke(t.Context(), "a&b")
	if want := (control.Revoked{ID: mesh.ID{7}, Name: "a&b"}); err != nil || revoked != want || d.revoked != "a&b" {
		t.Errorf("revoke: got %+v, %v, want %+v", revoked, err, want)
	}
	for _, force := range []bool{false, true} {
		got, err := c.Renumber(t.Context(), force)
		if diff := cmp.Diff(d.renumbered, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("renumber: got %v (-want +got):\n%s", err, diff)
		}
	}
	if diff := cmp.Diff([]bool{false, true}, d.forced); diff != "" {
		t.Errorf("force (-want +got):\n%s", diff)
	}
	d.renumberErr = fmt.Errorf("%w: no conflict", control.ErrRefused)
	if _, err := c.Renumber(t.Context(), false); !errors.Is(err, control.ErrRefused) || err.Error() != d.renumberErr.Error() {
		t.Errorf("renumber without a conflict: got %v, want %v", err, d.renumberErr)
	}
}

func serve(t *testing.T, d control.Daemon) (*control.Client, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := control.Listen(dir, d, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(control.SocketPath(dir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket after Close: got %v, want it gone", err)
		}
	})
	return control.NewClient(dir), dir
}

func TestAnswers(t *testing.T) {
	d := &daemon{
		status: control.Status{
			Version: "1", Counters: []control.Counter{{Reason: "seal", Count: 3, Meaning: "sealed"}},
			Peers: []control.Peer{
				{Name: "a", Endpoint: netip.MustParseAddrPort("[2001:db8::1]:51820"), LastHandshake: time.Unix(1767323045, 5).UTC(), RTT: control.Milliseconds(1500 * time.Microsecond)},
				{Name: "without a tunnel", Candidates: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}, LANAddress: netip.MustParseAddr("192.168.1.2")},
			},
		},
		plan: control.Plan{Changes: []string{"+ route 10.42.1.0/24 dev meshd0"}},
	}
	c, dir := serve(t, d)
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.status, status, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	plan, err := c.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.plan, plan, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	if err := c.Forget(t.Context(), "a b&c"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a b&c"}, d.forgotten); diff != "" {
		t.Errorf("forgotten (-want +got):\n%s", diff)
	}
	fi, err := os.Stat(control.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	if got := fi.Mode().Perm(); got != 0o600 {
		t.Errorf("mode of the socket: got %o, want 600", got)
	}
}

func TestErrorsOverTheSocket(t *testing.T) {
	d := &daemon{
		planErr:   errors.New("observe host: no permission"),
		forgetErr: fmt.Errorf("%w: node x is alive", control.ErrRefused),
	}
	c, _ := serve(t, d)
	if _, err := c.Plan(t.Context()); err == nil || err.Error() != d.planErr.Error() {
		t.Errorf("plan: got %v, want %v", err, d.planErr)
	}
	err := c.Forget(t.Context(), "x")
	if !errors.Is(err, control.ErrRefused) || err.Error() != "refused: node x is alive" {
		t.Errorf("forget: got %v, want %v", err, d.forgetErr)
	}
}

func TestNotRunning(t *testing.T) {
	dir := t.TempDir()
	if _, err := control.NewClient(dir).Status(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("no socket: got %v, want %v", err, control.ErrNotRunning)
	}
	leaveStaleSocket(t, dir)
	if _, err := control.NewClient(dir).Status(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("stale socket: got %v, want %v", err, control.ErrNotRunning)
	}
	s, err := control.Listen(dir, &daemon{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("replace the stale socket: %v", err)
	}
	if _, err := control.NewClient(dir).Status(t.Context()); err != nil {
		t.Errorf("after replacing the stale socket: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// leaveStaleSocket leaves a socket as a killed daemon does.
func leaveStaleSocket(t *testing.T, dir string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: control.SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDeletedSocketIsBack deletes the socket and its directory while a server runs.
func TestDeletedSocketIsBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	s, err := control.Listen(dir, &daemon{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := s.EnsureListening(); err != nil {
			t.Fatal(err)
		}
		if _, err := control.NewClient(dir).Status(t.Context()); err != nil {
			t.Errorf("after EnsureListening: %v", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("close without the socket's file: %v", err)
	}
}

// TestReadSocket asks at the socket for those who may only read.
func TestReadSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	read := control.ReadSocketPath(dir)
	d := &daemon{status: control.Status{Version: "1"}}
	s, err := control.Listen(dir, d, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(read); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its directory: got %v, want no socket", err)
	}
	if err := errors.Join(os.Mkdir(filepath.Dir(read), 0o750), s.EnsureListening()); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(read); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("the socket: got %v, %v, want mode 660", fi, err)
	}
	// A run directory whose control socket this one is.
	reader := control.NewClient(filepath.Dir(read))
	if status, err := reader.Status(t.Context()); err != nil || status.Version != "1" {
		t.Errorf("status: got %+v, %v", status, err)
	}
	if _, err := reader.Ping(t.Context(), "x", 1); err != nil {
		t.Errorf("ping: got %v, want no error", err)
	}
	for name, err := range map[string]error{
		"forget":        reader.Forget(t.Context(), "x"),
		"client config": func() error { _, err := reader.ClientConfig(t.Context(), "x"); return err }(),
		"renumber":      func() error { _, err := reader.Renumber(t.Context(), true); return err }(),
	} {
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s: got %v, want %v", name, err, os.ErrPermission)
		}
	}
	if len(d.forgotten)+len(d.forced) > 0 {
		t.Errorf("forgotten %v, renumbered %v by one who may only read", d.forgotten, d.forced)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(read); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: got %v, want no socket", err)
	}
}
