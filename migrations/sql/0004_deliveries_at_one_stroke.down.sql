DROP TYPE delivery_row;
