// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// version is the one of all file formats here. A later meshd that changes one
// of them raises it, so that this one refuses the file instead of misreading it.
const version = 1

// checkVersion returns an error unless got is a version that can be read.
func checkVersion(got int) error {
	switch {
	case got > version:
		return fmt.Errorf("%w: its version is %d, this meshd reads %d", ErrNewer, got, version)
	case got != version:
		return fmt.Errorf("%w: version %d is unknown", ErrDamaged, got)
	}
	return nil
}

// decodeJSON fills file from data, and is as strict as it can be: an unknown
// key in a state file is a misspelt one, and what was meant by it is missing.
func decodeJSON(data []byte, file any) error {
	// The version is read on its own first, because a newer file may well have
	// keys that are unknown here.
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := checkVersion(head.Version); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(file); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// encodeJSON is for files that people read: indented, with a last newline.
func encodeJSON(file any) ([]byte, error) {
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return append(data, '\n'), nil
}

// wayOut says what a person can do about a file that can't be read, and what
// follows if it is moved away.
func wayOut(err error, otherwise string) string {
	if errors.Is(err, ErrNewer) {
		return "install that version again, restore the file from a backup, or move it away and " + otherwise
	}
	return "restore the file from a backup, or move it away and " + otherwise
}
