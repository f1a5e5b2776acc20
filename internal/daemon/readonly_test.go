// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/cni"
)

func TestExplainReadOnly(t *testing.T) {
	changes := []cni.Change{{Path: "/srv/cni/10-meshd.conflist"}, {Path: "/opt/cni/bin/bridge"}, {Path: "/opt/cni/bin/portmap"}}
	err := fmt.Errorf("write /srv/cni/10-meshd.conflist: %w", unix.EROFS)
	want := "write /srv/cni/10-meshd.conflist: read-only file system; the unit meshd.service may keep it read-only: " +
		"run mkdir -p /opt/cni/bin /srv/cni, write [Service] and ReadWritePaths=-/opt/cni/bin -/srv/cni into what systemctl edit meshd opens, a line each, and run systemctl restart meshd"
	got := explainReadOnly(err, directories(changes)...)
	if diff := cmp.Diff(want, got.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if !errors.Is(got, unix.EROFS) {
		t.Errorf("%v is not the error that it explains", got)
	}
	for _, err := range []error{nil, unix.EACCES} {
		if got := explainReadOnly(err, "/srv"); got != err {
			t.Errorf("%v: got %v", err, got)
		}
	}
}
