// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
)

// imageName must be containerd's sandbox image.
const imageName = "localhost/meshd-test/pod:1"

// writeImage writes an archive as docker save does: a layer with this program,
// what to run, and a list of both.
func writeImage(path string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return fmt.Errorf("read own program: %w", err)
	}
	var layer bytes.Buffer
	if err := writeTar(&layer, entry{"pod", program}); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/pod", "serve"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
	})
	if err != nil {
		return fmt.Errorf("write image's configuration: %w", err)
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{imageName}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return fmt.Errorf("write image's manifest: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return errors.Join(writeTar(f, entry{"layer.tar", layer.Bytes()}, entry{"config.json", config}, entry{"manifest.json", manifest}), f.Close())
}

type entry struct {
	name    string
	content []byte
}

func writeTar(w io.Writer, entries ...entry) error {
	t := tar.NewWriter(w)
	for _, e := range entries {
		err := t.WriteHeader(&tar.Header{Name: e.name, Mode: 0o755, Size: int64(len(e.content))})
		if err == nil {
			_, err = t.Write(e.content)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", e.name, err)
		}
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("end archive: %w", err)
	}
	return nil
}
