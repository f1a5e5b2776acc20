// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// version is the version of all file formats of this package. A later meshd that changes
// one of them raises it, so that this one refuses the file instead of misreading it.
const version = 1

// checkVersion returns an error if a file's version can't be read.
func checkVersion(got int) error {
	switch {
	case got > version:
		return fmt.Errorf("%w: its version is %d, this meshd reads %d", ErrNewer, got, version)
	case got != version:
		return fmt.Errorf("%w: version %d is unknown", ErrDamaged, got)
	}
	return nil
}

// decodeJSON decodes data into file. It refuses unknown keys: they are misspelt, and the
// key that was meant is missing.
func decodeJSON(data []byte, file any) error {
	// Read the version alone first: a newer file may have keys that are unknown here.
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

// encodeJSON encodes a file that people may read: indented, with a newline at the end.
func encodeJSON(file any) ([]byte, error) {
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return append(data, '\n'), nil
}

// advice returns what a person can do about a file that can't be read. without is what the
// node does if the file is moved away.
func advice(err error, without string) string {
	if errors.Is(err, ErrNewer) {
		return "install that version again, restore the file from a backup, or move it away and " + without
	}
	return "restore the file from a backup, or move it away and " + without
}
